"""`stocktide sim`: the commands of the device simulator, and the universe beside them."""

from firmware_sim.cli.app import app
from simulation.cli import universe

app.command("universe")(universe)

__all__ = ["app"]
