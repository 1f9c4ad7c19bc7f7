"""`stocktide schema`: the documents that are generated from the code, written and checked for drift."""

import json
from pathlib import Path
from typing import Annotated, Final

import typer

from stocktide import settings_page
from wire_protocol import asyncapi

app = typer.Typer(no_args_is_help=True, help="The message schemas: JSON Schema and AsyncAPI.")

DEFAULT_OUT: Final = Path("docs")
Out = Annotated[Path, typer.Option("--out", "-o", help="The folder of the documents.")]


def _documents() -> dict[Path, str]:
    protocol = {Path("protocol/asyncapi.json"): asyncapi.document()}
    protocol |= {Path("protocol/schemas") / f"{name}.json": schema for name, schema in asyncapi.schemas().items()}
    made = {path: json.dumps(document, indent=2, ensure_ascii=False) + "\n" for path, document in protocol.items()}
    return made | {Path("settings.md"): settings_page.page()}


@app.command()
def render(out: Out = DEFAULT_OUT) -> None:
    """Write the AsyncAPI document, one JSON Schema for each message, and the page of settings."""
    documents = _documents()
    for path, text in documents.items():
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).write_text(text, encoding="utf-8")
    typer.echo(f"{len(documents)} documents written to {out}")


@app.command()
def check(out: Out = DEFAULT_OUT) -> None:
    """Fail when the documents are not what the code says."""
    expected = _documents()
    present = {path.relative_to(out) for path in (*(out / "protocol").rglob("*.json"), *out.glob("settings.md"))}
    stale = [path for path, text in expected.items() if path not in present or (out / path).read_text("utf-8") != text]
    stale += sorted(present - expected.keys())
    for path in stale:
        typer.echo(f"differs: {out / path}", err=True)
    if stale:
        typer.echo("hint:    stocktide schema render", err=True)
        raise typer.Exit(1)
    typer.echo(f"{len(expected)} documents agree with the code")
