"""`stocktide edge enroll` and `stocktide edge certificate`: how this gateway becomes and stays trusted."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from command_line.output import emit_json, facts, local_time
from command_line.streams import say, writes
from edge_agent.cli.errors import shows
from edge_agent.cli.options import Json, LedgerPath
from edge_agent.errors import BadInput
from edge_agent.paths import identity_folder


@writes
def enroll(
    claim: Annotated[
        str, typer.Argument(help="The one-time claim; - to type or pipe it in, so that no list shows it.")
    ],
    ledger: LedgerPath,
    broker: Annotated[str, typer.Option("--broker", "-b", help="Where claims are taken, mqtts://host[:port].")],
    ca_file: Annotated[
        Path | None, typer.Option("--ca-file", exists=True, help="Authorities of that broker, PEM; else the system's.")
    ] = None,
    wait_s: Annotated[float, typer.Option("--wait", min=1, max=600, help="Seconds to wait for the answer.")] = 30.0,
    no_ledger: Annotated[bool, typer.Option("--no-ledger", help="Make no ledger: `edge restore` will.")] = False,
    insecure: Annotated[bool, typer.Option("--insecure", help="Allow mqtt:// without TLS: for a demo.")] = False,
    mqtt_version: Annotated[str, typer.Option("--mqtt-version", help="5 or 3.1.1.")] = "5",
    json_: Json = False,
) -> None:
    """Become a trusted gateway: make a key, have it certified by a one-time claim, and make a ledger if there is none.

    Exit codes: 2 the claim was mistyped, 3 no key could be made, 4 no connection, 5 no answer, 6 refused, 7 not stored,
    8 no ledger. After every one but 2 and 6 the same command can simply be run again.
    """
    from edge_agent.enroll import enroll as use
    from wire_protocol.address import BrokerAddress
    from wire_protocol.claims import ClaimCode

    if claim == "-":
        claim = typer.prompt("Claim", hide_input=True) if sys.stdin.isatty() else sys.stdin.readline()
    if not BrokerAddress.parse(broker).tls and not insecure:
        raise BadInput("A claim is not sent without TLS.", hint="Use mqtts://host.")
    done = use(
        ClaimCode.parse(claim),
        broker,
        ledger,
        ca_file=ca_file,
        wait_s=wait_s,
        make_ledger=not no_ledger,
        report=lambda step, text: say(f"{step:<12} {text}", err=True),
        mqtt_5=mqtt_version == "5",
    )
    identity = done.identity
    if json_:
        emit_json(
            {
                "gateway": identity.gateway,
                "ledger": str(ledger),
                "new_ledger": done.new_ledger,
                "identity": str(identity.folder),
                "serial": f"{identity.serial:x}",
                "brokers": identity.brokers,
                "ends_ms": identity.ends_ms,
                "twin": done.twin,
            }
        )
        return
    facts(
        [
            ("gateway", identity.gateway),
            ("brokers", ", ".join(identity.brokers) or "none were given"),
            ("valid until", local_time(identity.ends_ms)),
            ("renewed from", local_time(identity.renew_ms)),
        ]
    )
    say("\nNext: stocktide edge run")


@shows
@writes
def certificate(
    ledger: LedgerPath,
    renew: Annotated[bool, typer.Option("--renew", help="Have the running agent ask for the next one now.")] = False,
    json_: Json = False,
) -> None:
    """What this gateway proves itself with, and until when.

    It is renewed by itself at two thirds of its life; `--renew` does not wait for that.
    """
    from edge_agent.identity.keystore import IdentityFolder

    home = IdentityFolder.beside(ledger)
    found = home.current()
    if found is None:
        raise BadInput("This gateway is not enrolled.", hint="stocktide edge enroll CLAIM --broker mqtts://HOST")
    if renew:
        home.hurry()
    if json_:
        emit_json(
            {
                "gateway": found.gateway,
                "serial": f"{found.serial:x}",
                "folder": str(found.folder),
                "brokers": found.brokers,
                "ends_ms": found.ends_ms,
                "renew_ms": found.renew_ms,
            }
        )
        return
    facts(
        [
            ("gateway", found.gateway),
            ("folder", found.folder),
            ("serial", f"{found.serial:x}"),
            ("brokers", ", ".join(found.brokers)),
            ("valid until", local_time(found.ends_ms)),
            ("renewed from", local_time(found.renew_ms)),
        ]
    )


def cloud_brokers(ledger: Path, cloud_url: str | None) -> list[str]:
    """The cloud's brokers: those of the enrolment, or else the ledger's; none when the gateway works offline.

    A user without access to the identity still gets a status: where the brokers would be, it says why they are not.
    """
    known = [cloud_url] if cloud_url else []
    if not identity_folder(ledger).exists():
        return known  # without the import of cryptography, which takes a tenth of a second
    from edge_agent.identity.keystore import IdentityFolder, IdentityUnusable

    try:
        enrolled = IdentityFolder.beside(ledger).current()
    except PermissionError:
        return [f"enrolled; {identity_folder(ledger)} cannot be read by this user"]
    except IdentityUnusable as error:
        return [str(error)]
    return known if enrolled is None else list(enrolled.brokers)
