"""`stocktide broker fleet`: the cloud's brokers for gateways with certificates."""

from pathlib import Path
from typing import Annotated

import typer

from broker_config import files, fleet, others, passwords
from broker_config.fleet import FleetConfig, render_fleet
from broker_config.mosquitto import TlsFiles
from command_line.output import emit_json, table
from command_line.streams import say, writes
from wire_protocol import names

_BRIDGE_PASSWORD = "bridge-password"  # noqa: S105 - the name of a file
Port = Annotated[int, typer.Option(min=1, max=65535)]


@writes
def fleet_files(
    out: Annotated[Path, typer.Option(help="Directory to write to; the brokers read from there.")],
    cafile: Annotated[Path, typer.Option(help="Authorities of the gateways, PEM: bundle.pem of `cloud ca`.")],
    certfile: Annotated[Path, typer.Option(help="The brokers' own certificate, PEM: `cloud ca server`.")],
    keyfile: Annotated[Path, typer.Option(help="The brokers' own key, PEM.")],
    crlfile: Annotated[Path, typer.Option(help="The revocation lists, PEM: crl.pem of `cloud ca crl`.")],
    address: Annotated[str, typer.Option(help="Address that gateways reach.")] = "0.0.0.0",
    gateway_port: Port = 8883,
    claims_port: Port = 8884,
    worker_address: Annotated[str, typer.Option(help="Address that workers reach.")] = "127.0.0.1",
    worker_port: Port = 1884,
    worker_tls: Annotated[bool, typer.Option("--worker-tls", help="TLS for workers too: not on this machine.")] = False,
    data: Annotated[Path | None, typer.Option(help="Directory for what the broker stores.")] = None,
    rabbitmq_gateway: Annotated[
        list[str] | None, typer.Option(help="A gateway for RabbitMQ's definitions; may be given often.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Answer in JSON.")] = False,
) -> None:
    """Write two complete Mosquitto configurations, and the same policy for EMQX and RabbitMQ.

    All files are mode 0600: chown them to the broker's account. Workers' password: `stocktide broker passwd`.
    """
    home = out.absolute()
    files.make_folder(home)
    secret = home / _BRIDGE_PASSWORD
    password = secret.read_text().strip() if secret.exists() else passwords.generate()
    files.write(secret, f"{password}\n")
    tls = TlsFiles(cafile=cafile.absolute(), certfile=certfile.absolute(), keyfile=keyfile.absolute())
    config = FleetConfig(
        directory=home,
        tls=tls,
        crlfile=crlfile.absolute(),
        bridge_password=password,
        address=address,
        gateway_port=gateway_port,
        claims_port=claims_port,
        worker_address=worker_address,
        worker_port=worker_port,
        worker_tls=worker_tls,
        data_directory=data.absolute() if data else None,
    )
    made = render_fleet(config) | others.render_emqx(config) | others.render_rabbitmq(config, rabbitmq_gateway or [])
    for place, text in made.items():
        files.write(home / place, text)
    users = home / fleet.CLOUD / fleet.PASSWORDS
    if not users.exists():
        passwords.set_password(users, names.INGEST_USER, passwords.generate())  # until `broker passwd` sets another
    passwords.set_password(users, names.CLAIMS_USER, password)
    starts = [f"mosquitto -c {home / which / fleet.CONF}" for which in (fleet.CLOUD, fleet.CLAIMS)]
    if as_json:
        emit_json({"files": [str(home / place) for place in made], "start": starts})
        return
    table(["file"], [[str(home / place)] for place in made])
    say("\nStart them with:\n  " + "\n  ".join(starts))
    say(f"Give workers a password with: stocktide broker passwd {users} {names.INGEST_USER}")
