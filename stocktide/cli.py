"""`stocktide`: one command for all parts, each imported only when it is used.

A gateway that installed `stocktide-edge` has nothing of the cloud; asking it for `stocktide cloud` must say so, and
`stocktide edge stock` must not wait for anything it does not need.
"""

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from typing import Any, Final

import typer
from typer.core import TyperGroup

from command_line import streams
from command_line.streams import say


@dataclass(frozen=True, slots=True)
class CommandGroup:
    """Where a group of commands lives, and what installs what it needs."""

    module: str
    extra: str
    help: str

    def is_here(self) -> bool:
        """Whether the artefact that is installed has it; what it needs from elsewhere is another question."""
        package = ".".join(self.module.split(".")[:2])
        try:
            return importlib.util.find_spec(package) is not None
        except ModuleNotFoundError:
            return False


PARTS: Final[dict[str, CommandGroup]] = {
    "edge": CommandGroup("edge_agent.cli.app", "edge", "The gateway: ledger, technician's commands, agent."),
    "cloud": CommandGroup("stocktide.cloud", "cloud", "The cloud: ingest workers, registry, stock, API."),
    "broker": CommandGroup("broker_config.cli.app", "all", "Brokers: configuration and rights from the topic policy."),
    "sim": CommandGroup("stocktide.sim", "sim", "Devices that behave like real firmware; replays of recorded data."),
    "schema": CommandGroup("stocktide.schema", "all", "The message schemas: JSON Schema and AsyncAPI."),
    "demo": CommandGroup("stocktide.demo.cli", "all", "The whole system on this machine, proved, in two minutes."),
}


OWN_PACKAGES: Final = frozenset(part.module.partition(".")[0] for part in PARTS.values()) | {
    "wire_protocol",
    "cloud_store",
    "cloud_ingest",
    "cloud_api",
}


class LazyGroup(TyperGroup):
    """Loads a part's commands when they are asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        del ctx
        return [name for name, part in PARTS.items() if part.is_here()]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        del ctx
        part = PARTS.get(cmd_name)
        if part is None:
            return None
        if _wants_overview():
            # The overview needs a line about each part, not the part.
            return typer.core.TyperCommand(cmd_name, help=part.help, short_help=part.help)
        app = importlib.import_module(part.module).app
        command = typer.main.get_command(app)
        command.name = cmd_name
        return command


def _wants_overview() -> bool:
    return not sys.argv[1:] or sys.argv[1] in {"--help", "-h"}


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Inventory kept true from the shelf to the cloud.",
)


@app.callback(invoke_without_command=True)
def version_option(
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
) -> None:
    """Inventory kept true from the shelf to the cloud."""
    if version:
        from command_line.version import version as installed

        say(installed())
        raise typer.Exit


def main() -> None:
    """The console script."""
    streams.prepare()
    with streams.sparing_output():
        _run()


def _run() -> None:
    try:
        app()
    except ModuleNotFoundError as error:
        part = PARTS.get(sys.argv[1]) if len(sys.argv) > 1 else None
        missing = (error.name or "").partition(".")[0]
        if part is not None and not part.is_here():
            say(f"error: stocktide {sys.argv[1]} is not in stocktide-edge, which is installed here.", err=True)
            say(f"hint:  on the machine that is to have it: pip install 'stocktide[{part.extra}]'", err=True)
            sys.exit(2)
        if part is None or missing in OWN_PACKAGES:
            raise
        # Commands import what they need when they run, so this may come from anywhere below.
        say(f"error: stocktide {sys.argv[1]} needs the package {missing}, which is not installed.", err=True)
        say(f"hint:  pip install 'stocktide[{part.extra}]'", err=True)
        sys.exit(2)
