"""`stocktide sim device`: devices whose firmware can be exchanged."""

from pathlib import Path
from typing import Annotated

import typer

from firmware_sim.cli.options import MqttVersionText


def device(
    names: Annotated[list[str], typer.Argument(metavar="NAME…", help="The devices' names.")],
    broker: Annotated[str, typer.Option("--broker", "-b", metavar="URL", help="The gateway's own broker.")],
    model: Annotated[str, typer.Option("--model", help="What the devices are.")],
    trust: Annotated[Path, typer.Option("--trust", help="The public key whose releases they take, PEM.")],
    folder: Annotated[Path, typer.Option("--folder", help="Where each keeps its two slots, in a folder of its own.")],
    factory: Annotated[str, typer.Option("--factory", help="The version that they came with.")] = "1.0.0",
    health_s: Annotated[float, typer.Option("--health-s", min=0.1, max=3600, help="Time to be healthy in.")] = 30.0,
    mqtt_version: MqttVersionText = "5",
) -> None:
    """Be devices whose firmware can be exchanged, until stopped; started again they are where they were.

    An image whose first line is `stocktide-sim never-healthy` or `stocktide-sim crashes` does so.
    """
    import asyncio
    import contextlib

    from pydantic import TypeAdapter, ValidationError

    from firmware_sim.cli import fleets
    from firmware_sim.errors import BadInput
    from firmware_sim.fleet import updatable
    from firmware_sim.fleet.trust import TrustedKey
    from wire_protocol.address import BrokerAddress
    from wire_protocol.firmware import Model, Version
    from wire_protocol.names import device as device_name

    try:
        TypeAdapter(Model).validate_python(model)
        TypeAdapter(Version).validate_python(factory)
    except ValidationError:
        raise BadInput(f"{model} {factory} is no model and version.", hint="For example probe-x and 1.0.0.") from None
    trusted = TrustedKey.load(trust)
    units = [
        updatable.device(
            device_name(name),
            folder,
            trusted,
            model=model,
            factory=factory,
            health_ms=round(health_s * 1000),
            boot=fleets.boot_counter(None),
        )
        for name in names
    ]
    running = updatable.run(units, BrokerAddress.parse(broker), fleets.link_options(mqtt_version), typer.echo)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(running)
