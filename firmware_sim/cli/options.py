"""Options that many simulator commands share."""

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Boot = Annotated[
    str | None,
    typer.Option(
        "--boot", metavar="HEX", help="Boot counter, part of each event id. Default: the time, so that ids are new."
    ),
]
MqttVersionText = Annotated[str, typer.Option("--mqtt-version", help="5 or 3.1.1.")]
StallS = Annotated[
    float, typer.Option("--stall-s", min=0.1, max=86_400, help="Give up when no receipt comes for this many seconds.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
