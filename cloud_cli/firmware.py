"""`stocktide cloud firmware`: keys, signed releases, and the images that devices are to run."""

import sys
import time
from getpass import getuser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloud_cli.errors import BadInput
from cloud_cli.options import DatabaseUrl, Json, Limit, Tenant, TheTenant, database
from cloud_ingest.defaults import DATABASE_URL
from command_line.output import ErrorGroup, emit_json, listing
from command_line.streams import pouring, say, writes

if TYPE_CHECKING:
    from cloud_store.base.connection import Connection
    from wire_protocol.firmware import Manifest, Release

firmware_app = typer.Typer(cls=ErrorGroup, no_args_is_help=True, help="Firmware: signed releases for devices.")

Image = Annotated[Path, typer.Argument(metavar="FILE", help="The image.")]
Model = Annotated[str, typer.Option("--model", help="The model of device that it is for.")]
Version = Annotated[str, typer.Option("--version", help="Its version, numbers with dots: 1.4.2.")]
Replaces = Annotated[
    str | None,
    typer.Option("--replaces", metavar="VERSION", help="For a rollback release: the newer version that it takes back."),
]
Number = Annotated[
    int | None, typer.Option("--release", min=1, help="The release's number, greater than the last. Default: the time.")
]


@firmware_app.command("keygen")
@writes
def keygen(
    private: Annotated[Path, typer.Argument(metavar="KEY", help="Where the private key goes; keep it to yourself.")],
    public: Annotated[Path, typer.Argument(metavar="PUBLIC", help="Where the public key goes, for devices.")],
    json_: Json = False,
) -> None:
    """Make a pair of keys: one signs releases, the other is what devices are made to trust."""
    from cloud_identity import signatures

    signatures.make_pair(private, public)
    document = {"private": str(private), "public": str(public)}
    emit_json(document) if json_ else say(f"{private} signs, {public} goes into devices.")


@firmware_app.command("manifest")
def manifest(
    image: Image,
    model: Model,
    version: Version,
    number: Annotated[int, typer.Option("--release", min=1, help="The release's number, greater than the last.")],
    replaces: Replaces = None,
) -> None:
    """Print what is to be signed when the key is elsewhere; `add` takes the signature of these bytes.

    openssl pkeyutl -sign -rawin -inkey KEY.pem -in MANIFEST -out SIGNATURE
    """
    made = _manifest(_read(image), model, version, number, replaces)
    with pouring():
        sys.stdout.buffer.write(made.signed_bytes())


@firmware_app.command("add")
@writes
def add(
    image: Image,
    tenant: TheTenant,
    model: Model,
    version: Version,
    sign_key: Annotated[Path | None, typer.Option("--sign-key", help="The private key, PEM.")] = None,
    signature: Annotated[Path | None, typer.Option("--signature", help="Or a signature made elsewhere.")] = None,
    public_key: Annotated[Path | None, typer.Option("--public-key", help="With it: the public key, PEM.")] = None,
    number: Number = None,
    replaces: Replaces = None,
    database_url: DatabaseUrl = DATABASE_URL,
    json_: Json = False,
) -> None:
    """Add a release; with the key at hand, also its rollback release, for `job create --rollback`."""
    from cloud_store.provisioning import firmware

    if (sign_key is None) == (signature is None) or (signature is None) != (public_key is None):
        raise BadInput("Who signs it?", hint="Give --sign-key KEY, or --signature FILE with --public-key PEM.")
    if signature is not None and number is None:
        raise BadInput("Which number was signed?", hint="Give --release as it was given to `firmware manifest`.")
    body = _read(image)
    with database(database_url) as connection:
        release = max(_now(), firmware.greatest(connection, tenant, model) + 1) if number is None else number
        made = _manifest(body, model, version, release, replaces)
        releases = _releases(connection, tenant, made, sign_key, signature, public_key)
        firmware.add(connection, tenant, releases, body, who=getuser())
    if json_:
        emit_json([each.model_dump() for each in releases])
        return
    say(f"{model} {version} is release {made.release}, {made.size} bytes.")
    for back in releases[1:]:
        say(f"Its rollback release is {back.release}, to {back.version}.")
    say(f"Roll it out with: stocktide cloud job create --tenant {tenant} --firmware {model} {version}")


@firmware_app.command("list")
def list_(
    tenant: Tenant = None,
    model: Annotated[str | None, typer.Option("--model", help="Only this model.")] = None,
    database_url: DatabaseUrl = DATABASE_URL,
    limit: Limit = 100,
    json_: Json = False,
) -> None:
    """List releases, the latest of each model first."""
    from cloud_store.provisioning import firmware

    with database(database_url, tenant) as connection:
        found = firmware.listing(connection, tenant=tenant, model=model, limit=limit)
    # With its signature, a release is an order that devices obey: `add --json` gives it to its maker, jobs to gateways.
    rows = [{name: value for name, value in row.items() if name != "signature"} for row in found]
    columns = ("tenant", "model", "version", "release", "replaces", "size", "created_at", "created_by")
    listing(rows, columns, json_=json_, numbers=("release", "size"), empty="No firmware yet.")


def _releases(
    connection: "Connection",
    tenant: str,
    made: "Manifest",
    key: Path | None,
    signature: Path | None,
    public: Path | None,
) -> "list[Release]":
    """The release, and its rollback release where there is a version before and a key to sign with."""
    from cloud_identity import signatures
    from cloud_store.provisioning import firmware
    from wire_protocol.firmware import Manifest

    if key is None:
        if signature is None or public is None:
            raise BadInput("Who signs it?")
        return [signatures.signed(made, signature, public)]
    before = None if made.replaces else firmware.before(connection, tenant, made.model, made.version)
    releases = [signatures.sign(made, key)]
    if before is not None:
        fields: dict[str, Any] = {name: getattr(before, name) for name in Manifest.model_fields}
        back = Manifest(**(fields | {"release": made.release + 1, "replaces": made.version}))
        releases.append(signatures.sign(back, key))
    return releases


def _manifest(body: bytes, model: str, version: str, release: int, replaces: str | None) -> "Manifest":
    import hashlib

    from pydantic import ValidationError

    from wire_protocol.firmware import Manifest
    from wire_protocol.problems import first_problem

    try:
        return Manifest(
            model=model,
            version=version,
            release=release,
            size=len(body),
            replaces=replaces,
            sha256=hashlib.sha256(body).hexdigest(),
        )
    except ValidationError as error:
        raise BadInput(first_problem(error), hint="For example --model probe-x --version 1.4.2") from None


def _read(image: Path) -> bytes:
    from wire_protocol.firmware import IMAGE_BYTES_MAX

    try:
        with image.open("rb") as file:
            body = file.read(IMAGE_BYTES_MAX + 1)
    except OSError as error:
        raise BadInput(f"{image} cannot be read: {error.strerror}.") from None
    if not body:
        raise BadInput(f"{image} is empty.")
    if len(body) > IMAGE_BYTES_MAX:
        raise BadInput(f"{image} is larger than {IMAGE_BYTES_MAX} bytes.", hint="Split it, or let devices fetch less.")
    return body


def _now() -> int:
    return time.time_ns() // 1_000_000
