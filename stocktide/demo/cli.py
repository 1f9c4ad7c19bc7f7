"""`stocktide demo`."""

import asyncio
from typing import Annotated

import typer

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
    from stocktide.demo.errors import DemoError  # noqa: PLC0415 - `--help` needs none of this
    from stocktide.demo.plan import Timing  # noqa: PLC0415
    from stocktide.demo.run import run  # noqa: PLC0415
    from stocktide.demo.screen import Screen  # noqa: PLC0415

    timing = Timing(replay_s=seconds, cut_after_s=seconds * 0.3, cut_for_s=seconds * 0.2, events_max=events)
    screen = Screen()
    try:
        holds = asyncio.run(run(screen, keep=keep, timing=timing))
    except DemoError as error:
        typer.echo(f"error: {error}", err=True)
        if error.hint:
            typer.echo(f"hint:  {error.hint}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    raise typer.Exit(0 if holds else 1)
