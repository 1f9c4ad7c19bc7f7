"""`stocktide sim`: the commands of the device simulator, and the universe beside them."""

from firmware_sim.cli import app
from stocktide.universe.cli import universe

app.command("universe")(universe)

__all__ = ["app"]
