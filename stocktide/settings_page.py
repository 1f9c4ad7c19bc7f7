"""docs/settings.md: every setting of every part in one table each, generated from the models that read them."""

import importlib
from typing import Any, Final

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

SOURCES: Final = (
    ("Edge agent", "`stocktide edge run`", "edge_agent.settings", "EdgeSettings"),
    ("Ingest worker", "`stocktide cloud ingest`", "cloud_ingest.settings", "IngestSettings"),
    ("HTTP API", "`stocktide cloud api`", "cloud_api.settings", "ApiSettings"),
    ("Broker bounds", "`stocktide broker render`", "broker_config.limits", "BrokerLimits"),
)
_HEAD: Final = """# Settings

Every bound of Stocktide is a setting with its unit at the end of its name. This page is generated from the models that
read them (`stocktide schema render`), and `make check` fails when it is stale. The protocol's own bounds (sizes of
frames, messages and names) are constants of `wire_protocol` and the same at both ends: see [protocol](protocol).
"""


def page() -> str:
    """The whole page."""
    sections = [_HEAD]
    for title, command, module, name in SOURCES:
        model: type[BaseModel] = getattr(importlib.import_module(module), name)
        sections.append(_section(title, command, model))
    return "\n".join(sections)


def _section(title: str, command: str, model: type[BaseModel]) -> str:
    prefix = str(model.model_config.get("env_prefix", ""))
    named = "variable" if prefix else "field"
    lines = [f"## {title}", "", f"Read by {command}.", "", f"| {named} | default | meaning |", "|---|---|---|"]
    for name, info in model.model_fields.items():
        shown = f"{prefix}{name}".upper() if prefix else name
        lines.append(f"| `{shown}` | {_default(info)} | {_meaning(info)} |")
    return "\n".join([*lines, ""])


def _default(info: FieldInfo) -> str:
    if info.default is PydanticUndefined or info.default is None:
        return "—"
    return f"`{info.default}`"


def _meaning(info: FieldInfo) -> str:
    bounds = {type(limit).__name__: limit for limit in info.metadata}
    shown: list[Any] = []
    for name, sign in (("Ge", "≥"), ("Gt", ">"), ("Le", "≤"), ("Lt", "<")):
        if name in bounds:
            shown.append(f"{sign} {getattr(bounds[name], name.lower())}")
    text = (info.description or "").replace("|", "\\|")
    return f"{text} ({', '.join(shown)})" if shown else text
