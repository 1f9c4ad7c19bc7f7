"""`stocktide broker run` and `run-fleet`: the embedded broker in the foreground, until SIGTERM.

On SIGHUP it reads its files again, as Mosquitto does; files that cannot be used leave it as it was.
"""

import asyncio
import json
import signal
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from broker_config import passwords
from broker_config.errors import BrokerError, InvalidConfig, SimExtraMissing
from broker_config.limits import EMBEDDED_CONNECTIONS_MAX
from broker_config.mosquitto import TlsFiles
from broker_config.policy import Side
from command_line.streams import say

if TYPE_CHECKING:
    from broker_config.embedded.listeners import Listener

AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
ConnectionsMax = Annotated[
    int, typer.Option("--connections-max", min=1, help="Clients connected at most, over all listeners together.")
]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")]


def run(
    side: Annotated[Side, typer.Option(help="The cloud's broker, or a gateway's own.")] = Side.CLOUD,
    port: Port = 1883,
    password_file: Annotated[Path | None, typer.Option("--passwords", help="Users, see `passwd`.")] = None,
    anonymous: Annotated[bool, typer.Option(help="Let everybody in; loopback only, as always.")] = False,
    connections_max: ConnectionsMax = EMBEDDED_CONNECTIONS_MAX,
    as_json: AsJson = False,
) -> None:
    """Run the embedded broker in the foreground until SIGTERM. For demos and tests: it stores nothing."""
    if (password_file is None) != anonymous:
        raise InvalidConfig("Who may connect?", hint="Give either --passwords FILE or --anonymous.")

    def wanted() -> "list[Listener]":
        from broker_config.embedded import listeners

        users = passwords.read(password_file) if password_file else None
        return [listeners.only(port, side, users)]

    asyncio.run(_serve(side, wanted, connections_max, as_json=as_json))


def run_fleet(
    cafile: Annotated[Path, typer.Option(help="Authorities of the gateways, PEM: bundle.pem of `cloud ca`.")],
    certfile: Annotated[Path, typer.Option(help="The broker's own certificate, PEM: `cloud ca server`.")],
    keyfile: Annotated[Path, typer.Option(help="The broker's own key, PEM.")],
    crlfile: Annotated[Path, typer.Option(help="The revocation lists, PEM: crl.pem of `cloud ca crl`.")],
    claims: Annotated[Path, typer.Option(help="Claims and their secrets, a password file: `broker passwd`.")],
    gateway_port: Port = 8883,
    claims_port: Port = 8884,
    worker_port: Port = 8885,
    connections_max: ConnectionsMax = EMBEDDED_CONNECTIONS_MAX,
    as_json: AsJson = False,
) -> None:
    """Run the embedded broker for gateways with certificates, with doors for claims and for workers.

    Loopback only, MQTT 3.1.1 only, and it stores nothing: for demos and tests. `broker fleet` is for the rest.
    """
    tls = TlsFiles(cafile=cafile.absolute(), certfile=certfile.absolute(), keyfile=keyfile.absolute())

    def wanted() -> "list[Listener]":
        from broker_config.embedded import listeners

        return listeners.fleet(
            tls,
            crlfile,
            passwords.read(claims),
            gateway_port=gateway_port,
            claims_port=claims_port,
            worker_port=worker_port,
        )

    asyncio.run(_serve(Side.CLOUD, wanted, connections_max, as_json=as_json))


async def _serve(side: Side, wanted: "Callable[[], list[Listener]]", connections_max: int, *, as_json: bool) -> None:
    try:
        from broker_config.embedded.broker import (
            HOST,
            EmbeddedBroker,
        )
    except ModuleNotFoundError as error:
        raise SimExtraMissing from error
    loop = asyncio.get_running_loop()
    stopped, changed = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    loop.add_signal_handler(signal.SIGHUP, changed.set)
    given = wanted()
    embedded = EmbeddedBroker(side=side, given=given, connections_max=connections_max)
    async with embedded as broker, asyncio.TaskGroup() as group:
        reading = group.create_task(_read_again(broker.open, wanted, changed), name="broker.reading")
        urls = {
            listener.name: f"{'mqtt' if listener.tls is None else 'mqtts'}://{HOST}:{broker.port_of(listener.name)}"
            for listener in given
        }
        if len(urls) == 1:
            (url,) = urls.values()
            text = json.dumps({"url": url}) if as_json else f"listening on {url}"
        else:
            addresses = ", ".join(f"{url} ({name})" for name, url in urls.items())
            text = json.dumps(urls) if as_json else f"listening on {addresses}"
        print(text, flush=True)  # noqa: T201 - the answer; the parent process waits for this line
        await stopped.wait()
        reading.cancel()


async def _read_again(
    put: "Callable[[Sequence[Listener]], Awaitable[None]]",
    wanted: "Callable[[], list[Listener]]",
    changed: asyncio.Event,
) -> None:
    while True:
        await changed.wait()
        changed.clear()
        try:
            await put(wanted())
        except BrokerError as error:
            # The operator who sent the signal reads the log; a bad file must not end connections.
            say(f"error: {error}\nhint:  everything is as it was; mend it and send SIGHUP again", err=True)
        else:
            say("read again", err=True)
