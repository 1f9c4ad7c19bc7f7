"""`stocktide cloud gateway claim|revoke|certificates`, `cloud claim` and `cloud ca`: whom the cloud trusts, and why."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cloud_cli.options import DatabaseUrl, Json, Limit, Tenant, TheTenant, database
from cloud_cli.registry import gateway_app
from cloud_ingest.defaults import DATABASE_URL, MQTT_URL
from command_line.output import as_json, emit_json, facts, fail, listing
from command_line.streams import say, say_secret, writes

if TYPE_CHECKING:
    from cloud_identity.authority import Authority

claim_app = typer.Typer(no_args_is_help=True, help="One-time claims, by which gateways enrol.")
ca_app = typer.Typer(no_args_is_help=True, help="The certificate authority of gateways and brokers.")

RELOAD_S_MAX: Final = 10.0
CaDir = Annotated[Path, typer.Option("--ca-dir", envvar="STOCKTIDE_CA_DIR", help="The authority's directory.")]
MaybeCaDir = Annotated[
    Path | None, typer.Option("--ca-dir", envvar="STOCKTIDE_CA_DIR", help="The authority's directory, if it is here.")
]
Reload = Annotated[
    str | None,
    typer.Option(
        "--reload-command",
        envvar="STOCKTIDE_BROKER_RELOAD_COMMAND",
        help="Makes the broker read the revocation list again: systemctl reload mosquitto",
    ),
]
MqttUrl = Annotated[
    str, typer.Option("--mqtt-url", envvar="STOCKTIDE_MQTT_URL", help="The cloud's broker, where workers connect.")
]


@gateway_app.command("claim")
@writes
def claim_gateway(
    gateway: str,
    tenant: TheTenant,
    site: Annotated[str, typer.Option("--site", "-s", help="The site.")],
    hours: Annotated[float, typer.Option(min=0.01, max=720, help="How long the claim can be used.")] = 24,
    broker: Annotated[
        str | None, typer.Option(envvar="STOCKTIDE_CLAIMS_URL", help="The brokers' claim listener, mqtts://host:port.")
    ] = None,
    database_url: DatabaseUrl = DATABASE_URL,
    json_: Json = False,
) -> None:
    """Make a one-time claim for a gateway; a gateway that is new is registered. The claim is shown once, only here."""
    import secrets

    from cloud_ingest.services.enrolment import secret_hash
    from cloud_store.identity import enrolment
    from wire_protocol.claims import CODE_BYTES, ClaimCode

    code = ClaimCode.make(secrets.token_bytes(CODE_BYTES))
    with database(database_url) as connection:
        ends, is_new = enrolment.add_claim(
            connection,
            tenant,
            site,
            gateway,
            name=code.name,
            secret_hash=secret_hash(code.secret),
            life_s=hours * 3600,
        )

    def undo() -> str:
        with database(database_url) as connection:
            enrolment.revoke_claim(connection, code.name)
        return f"Claim {code.name} is revoked."

    if json_:
        document = {
            "claim": code.text(),
            "name": code.name,
            "tenant": tenant,
            "site": site,
            "gateway": gateway,
            "expires_at": ends,
            "registered": is_new,
            "broker": broker,
        }
        say_secret(as_json(document), undo)
        return
    import io

    import segno

    say_secret(f"claim    {code.text()}", undo)
    facts(
        [
            ("gateway", f"{gateway} (new)" if is_new else gateway),
            ("site", f"{site} of {tenant}"),
            ("expires", ends.astimezone().strftime("%Y-%m-%d %H:%M:%S")),
        ]
    )
    say()
    drawn = io.StringIO()
    segno.make(code.text().upper(), micro=False).terminal(out=drawn, compact=True)
    if _draws(drawn.getvalue()):
        say(drawn.getvalue(), end="")
    say(f"\nOn the gateway: stocktide edge enroll - --broker {broker or 'mqtts://HOST'}")


def _draws(picture: str) -> bool:
    """Whether the terminal has the characters of a picture; escaped ones would be no picture."""
    try:
        picture.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


@gateway_app.command("revoke")
@writes
def revoke_gateway(
    gateway: str,
    ca_dir: MaybeCaDir = None,
    reload_command: Reload = None,
    mqtt_url: MqttUrl = MQTT_URL,
    mqtt_ca_file: Annotated[str | None, typer.Option(envvar="STOCKTIDE_MQTT_CA_FILE", help="Authorities, PEM.")] = None,
    mqtt_cert_file: Annotated[
        str | None, typer.Option(envvar="STOCKTIDE_MQTT_CERT_FILE", help="The workers' certificate, PEM.")
    ] = None,
    mqtt_key_file: Annotated[str | None, typer.Option(envvar="STOCKTIDE_MQTT_KEY_FILE", help="Its key, PEM.")] = None,
    mqtt_version: Annotated[str, typer.Option(envvar="STOCKTIDE_MQTT_VERSION", help="5 or 3.1.1.")] = "5",
    database_url: DatabaseUrl = DATABASE_URL,
    json_: Json = False,
) -> None:
    """Shut a gateway out: its frames, its certificates and its live connection. It can be run again at any time."""
    import asyncio

    from cloud_ingest.transport.eviction import evict
    from cloud_store.identity import enrolment

    with database(database_url) as connection:
        number = enrolment.revoke_gateway(connection, gateway)
    done: dict[str, Any] = {"gateway": gateway, "state": "disabled", "certificates_revoked": number}
    try:
        done |= {"crl": _write_crl(ca_dir, reload_command, database_url), "reloaded": reload_command is not None}
    finally:  # whatever became of the list, the connection is to end
        asyncio.run(
            evict(
                mqtt_url,
                gateway,
                ca_file=mqtt_ca_file,
                cert_file=mqtt_cert_file,
                key_file=mqtt_key_file,
                mqtt_5=mqtt_version == "5",
            )
        )
    done["evicted"] = True
    if json_:
        emit_json(done)
        return
    say(f"gateway {gateway} is disabled; {number} certificates revoked; its connection was ended")
    if done["crl"] is None or reload_command is None:
        say("note: until the brokers have a new revocation list it can connect, but nothing it sends is taken:")
        say("      stocktide cloud ca crl, where the authority is, and reload the brokers")


@gateway_app.command("certificates")
def list_certificates(
    gateway: Annotated[str | None, typer.Argument(help="Only of this gateway.")] = None,
    limit: Limit = 100,
    database_url: DatabaseUrl = DATABASE_URL,
    json_: Json = False,
) -> None:
    """List the newest certificates."""
    from cloud_store.identity import enrolment

    with database(database_url) as connection:
        rows = enrolment.certificates(connection, gateway=gateway, limit=limit)
    columns = ("gateway", "state", "issued_at", "not_after", "revoked_at", "serial")
    listing(rows, columns, json_=json_, empty="No certificates yet.")


@claim_app.command("list")
def list_claims(
    tenant: Tenant = None, limit: Limit = 100, database_url: DatabaseUrl = DATABASE_URL, json_: Json = False
) -> None:
    """List the newest claims."""
    from cloud_store.identity import enrolment

    with database(database_url, tenant) as connection:
        rows = enrolment.claims(connection, tenant=tenant, limit=limit)
    columns = ("claim", "tenant", "site", "gateway", "state", "created_at", "expires_at", "used_at")
    listing(rows, columns, json_=json_, empty="No claims yet.")


@claim_app.command("revoke")
@writes
def revoke_claim(
    name: Annotated[str, typer.Argument(help="The claim's name, its first eight characters.")],
    database_url: DatabaseUrl = DATABASE_URL,
    json_: Json = False,
) -> None:
    """Make a claim useless."""
    from cloud_store.identity import enrolment

    short = name.replace("-", "").lower()
    with database(database_url) as connection:
        enrolment.revoke_claim(connection, short)
    emit_json({"claim": short, "state": "revoked"}) if json_ else say(f"claim {short} is revoked")


@ca_app.command("init")
@writes
def init_ca(
    ca_dir: CaDir,
    name: Annotated[str, typer.Option(help="The authority's common name.")] = "Stocktide",
    json_: Json = False,
) -> None:
    """Make a certificate authority: a new key, which only you can read, and its certificate."""
    from cloud_identity.authority import Authority

    _shown(Authority.create(ca_dir, name), json_=json_)


@ca_app.command("show")
def show_ca(ca_dir: CaDir, json_: Json = False) -> None:
    """Show the authorities: which signs, and which are trusted still."""
    from cloud_identity.authority import Authority

    _shown(Authority(ca_dir), json_=json_)


@ca_app.command("rotate")
@writes
def rotate_ca(
    ca_dir: CaDir,
    name: Annotated[str, typer.Option(help="The new authority's common name.")] = "Stocktide",
    json_: Json = False,
) -> None:
    """Make a new authority that signs from now on; the earlier ones stay trusted until they are retired."""
    from cloud_identity.authority import Authority

    authority = Authority(ca_dir)
    authority.current()
    authority.add(name)
    _shown(authority, json_=json_)


@ca_app.command("retire")
@writes
def retire_ca(
    key_id: Annotated[str, typer.Argument(help="The earlier authority, see `ca show`.")],
    ca_dir: CaDir,
    force: Annotated[bool, typer.Option("--force", help="Although gateways hang on it.")] = False,
    database_url: DatabaseUrl = DATABASE_URL,
    json_: Json = False,
) -> None:
    """Trust an earlier authority no longer, once no gateway hangs on it."""
    from cloud_identity.authority import Authority
    from cloud_store.identity import enrolment

    with database(database_url) as connection:
        hanging = enrolment.gateways_by_issuer(connection).get(key_id, 0)
    if hanging and not force:
        fail(f"{hanging} gateways still hang on {key_id}.", "Wait until they have renewed, or use --force.", 1)
    authority = Authority(ca_dir)
    authority.retire(key_id)
    _shown(authority, json_=json_)


@ca_app.command("server")
@writes
def server_certificate(
    hosts: Annotated[list[str], typer.Argument(help="Host names and addresses of the broker.")],
    out: Annotated[Path, typer.Option(help="Directory for server.pem and server.key.")],
    ca_dir: CaDir,
    days: Annotated[float, typer.Option(min=1, max=7300, help="How long it is valid.")] = 730,
    json_: Json = False,
) -> None:
    """Make a broker's key and certificate."""
    from cloud_identity.authority import Authority

    key, certificate = Authority(ca_dir).server(hosts, days)
    made = _written(out, "server", key, certificate)
    emit_json(made | {"hosts": hosts}) if json_ else facts(list(made.items()))


@ca_app.command("worker")
@writes
def worker_certificate(
    out: Annotated[Path, typer.Option(help="Directory for worker.pem and worker.key.")],
    ca_dir: CaDir,
    days: Annotated[float, typer.Option(min=1, max=7300, help="How long it is valid.")] = 730,
    json_: Json = False,
) -> None:
    """Make the workers' key and certificate, for a broker that knows them by it: the embedded one does."""
    from cloud_identity.authority import Authority

    made = _written(out, "worker", *Authority(ca_dir).worker(days))
    emit_json(made) if json_ else facts(list(made.items()))


@ca_app.command("crl")
@writes
def revocation_list(
    ca_dir: CaDir, reload_command: Reload = None, database_url: DatabaseUrl = DATABASE_URL, json_: Json = False
) -> None:
    """Write the revocation list, which brokers read on reload."""
    written = _write_crl(ca_dir, reload_command, database_url)
    emit_json({"crl": written}) if json_ else say(f"{written} written")


def _written(out: Path, name: str, key: bytes, certificate: bytes) -> dict[str, Any]:
    from cloud_identity.files import make_folder, write

    make_folder(out, mode=0o755)
    write(out / f"{name}.key", key, mode=0o600)
    write(out / f"{name}.pem", certificate, mode=0o644)
    return {"key": str(out / f"{name}.key"), "certificate": str(out / f"{name}.pem")}


def _write_crl(ca_dir: Path | None, reload_command: str | None, database_url: str) -> str | None:
    if ca_dir is None:
        return None
    from cloud_identity.authority import Authority
    from cloud_identity.certificates import Revoked
    from cloud_store.identity import enrolment

    with database(database_url) as connection:
        lines = [Revoked(issuer, serial, at) for issuer, serial, at in enrolment.revoked(connection)]
    written = Authority(ca_dir).write_crl(lines)
    if reload_command is not None:
        _reload(reload_command)
    return str(written)


def _reload(command: str) -> None:
    import shlex
    import subprocess

    from cloud_cli.errors import BrokerNotReloaded

    try:
        subprocess.run(shlex.split(command), check=True, capture_output=True, timeout=RELOAD_S_MAX)  # noqa: S603 - the operator's own
    except (OSError, subprocess.SubprocessError) as error:
        hint = "The list is written; reload the broker by hand. Nothing that the gateway sends is taken."
        raise BrokerNotReloaded(f"The broker was not reloaded: {error}", hint=hint) from None


def _shown(authority: "Authority", *, json_: bool) -> None:
    members = authority.members()
    rows = [
        {
            "key_id": member.key_id,
            "name": member.certificate.subject.rfc4514_string(),
            "signs": number == 0,
            "not_after": member.certificate.not_valid_after_utc,
            "bundle": str(authority.bundle),
        }
        for number, member in enumerate(members)
    ]
    listing(rows, ("key_id", "name", "signs", "not_after", "bundle"), json_=json_, empty="")
