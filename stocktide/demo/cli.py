"""`stocktide demo`."""

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from stocktide.demo.errors import DemoError

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)


@app.command()
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running and print where it is.")] = False,
    seconds: Annotated[float, typer.Option("--seconds", min=10, max=600, help="How long the replay takes.")] = 40,
    events: Annotated[
        int, typer.Option("--events", min=100, max=20_000, help="Recorded transactions per site, at most.")
    ] = 2_000,
) -> None:
    """The whole path on this machine: build it, replay real sales, cut a link, heal it, and prove the result.

    Exit code 0 when every event was counted once and edge and cloud agree on every balance; 1 otherwise.
    """
    from stocktide.demo.errors import DemoError
    from stocktide.demo.plan import Timing
    from stocktide.demo.run import run
    from stocktide.demo.screen import Screen

    timing = Timing(replay_s=seconds, cut_after_s=seconds * 0.3, cut_for_s=seconds * 0.2, events_max=events)
    screen = Screen()
    try:
        holds = asyncio.run(run(screen, keep=keep, timing=timing))
    except* DemoError as errors:
        error = _first(errors)
        typer.echo(f"error: {error}", err=True)
        if error.hint:
            typer.echo(f"hint:  {error.hint}", err=True)
        code = 1
    except* (KeyboardInterrupt, asyncio.CancelledError):
        code = 130
    else:
        code = 0 if holds else 1
    raise typer.Exit(code)


def _first(errors: "BaseExceptionGroup[DemoError]") -> "DemoError":
    """The error that a person should see out of the groups it travelled in."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error  # type: ignore[return-value]  # the leaves of a group of DemoError are DemoErrors
