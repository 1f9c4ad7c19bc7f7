"""`stocktide cloud twin`: what gateways and their devices should be, and what they are."""

import json
from getpass import getuser
from pathlib import Path
from typing import Annotated, Any

import typer

from cloud_cli.errors import BadInput
from cloud_cli.options import DatabaseUrl, Json, Limit, Site, Tenant, database
from cloud_ingest.defaults import DATABASE_URL
from command_line.output import FAILED, ErrorGroup, emit_json, listing, table
from command_line.streams import patient, say, writes
from wire_protocol import strict_json

twin_app = typer.Typer(cls=ErrorGroup, no_args_is_help=True, help="Twins: desired and reported state of gateways.")

Gateway = Annotated[str, typer.Argument(metavar="GATEWAY", help="The gateway's name.")]
PATCH_BYTES_MAX = 1 << 20
SECRET = frozenset({"signature", "key"})


@twin_app.command("set")
@writes
def set_(
    gateways: Annotated[list[str] | None, typer.Argument(metavar="[GATEWAY…]", help="Gateways by name.")] = None,
    patch: Annotated[str, typer.Option("--patch", "-p", help="A JSON merge patch (RFC 7396), or @FILE with one.")] = "",
    tenant: Tenant = None,
    site: Site = None,
    database_url: DatabaseUrl = DATABASE_URL,
    json_: Json = False,
) -> None:
    """Change the desired state of gateways: of those named, or of all of a tenant or a site.

    What is given replaces, null removes, the rest stays:

    --patch '{"devices": {"fridge-1": {"kind": "probe", "sampling_s": 60}, "old-2": null}}'
    """
    from cloud_store.provisioning import twins

    if not gateways and tenant is None:
        raise BadInput("Which gateways?", hint="Name them, or give --tenant and perhaps --site.")
    if site is not None and tenant is None:
        raise BadInput("A site belongs to a tenant.", hint="Give --tenant too.")
    wanted = twins.Selection(tuple(gateways) if gateways else None, tenant, site)
    document, done = read_patch(patch), twins.Changed(0, 0, 0)
    with (
        database(database_url) as connection,
        typer.progressbar(length=1, label="Changing twins", file=patient(), hidden=json_) as bar,
    ):
        for done in twins.change(connection, wanted, document, who=getuser()):
            bar.length = done.total
            bar.update(done.seen - bar.pos)
    if json_:
        emit_json({"gateways": done.total, "changed": done.changed})
    else:
        say(f"{done.changed} of {done.total} twins changed; see: stocktide cloud twin list")


@twin_app.command("show")
def show(gateway: Gateway, database_url: DatabaseUrl = DATABASE_URL, json_: Json = False) -> None:
    """Show the desired state of a gateway as it is, and what it reports."""
    from cloud_store.provisioning import twins

    with database(database_url) as connection:
        found = twins.show(connection, gateway)
    found["state"] = _shown(found["state"])
    if json_:
        emit_json(found)
        return
    say(f"version {found['version'] or 0}, in force at the gateway: {found['reported_version'] or 0}\n")
    say(json.dumps(found["state"] or {}, indent=2, ensure_ascii=False))


@twin_app.command("diff")
def diff(gateway: Gateway, database_url: DatabaseUrl = DATABASE_URL, json_: Json = False) -> None:
    """Show what is not yet as it should be. Ends with 1 when something is."""
    from cloud_store.provisioning import twins

    with database(database_url) as connection:
        found = twins.show(connection, gateway)
    rows = _differences(found)
    if json_:
        emit_json({"version": found["version"], "reported_version": found["reported_version"], "differences": rows})
    elif rows:
        table(["what", "desired", "reported", "why"], [list(row.values()) for row in rows])
    else:
        say(f"{gateway} is as it should be, at version {found['version'] or 0}.")
    if rows:
        raise typer.Exit(FAILED)


@twin_app.command("list")
def list_(
    database_url: DatabaseUrl = DATABASE_URL, tenant: Tenant = None, site: Site = None, json_: Json = False
) -> None:
    """List the twins and how far each is."""
    from cloud_store.provisioning import twins

    with database(database_url, tenant, site) as connection:
        rows = list(twins.overview(connection, tenant=tenant, site=site))
    columns = ("tenant", "site", "gateway", "version", "reported_version", "state", "changed_at", "reported_at")
    listing(rows, columns, json_=json_, numbers=("version", "reported_version"), empty="No twins yet.")


@twin_app.command("history")
def history(gateway: Gateway, database_url: DatabaseUrl = DATABASE_URL, limit: Limit = 20, json_: Json = False) -> None:
    """Show who changed the desired state of a gateway, and how."""
    from cloud_store.provisioning import twins

    with database(database_url) as connection:
        rows = twins.history(connection, gateway, limit=limit)
    for row in rows:
        row["patch"] = _shown(row["patch"])
    listing(
        rows,
        ("version", "changed_at", "changed_by", "patch"),
        json_=json_,
        numbers=("version",),
        empty="No changes yet.",
    )


def _shown(document: Any) -> Any:
    """A document as it is shown: a release with its signature is an order that a device obeys, whoever sends it.

    Hashes of devices' passwords stay away too: short passwords can be guessed from them.
    """
    if isinstance(document, dict):
        return {name: _shown(part) for name, part in document.items() if not (name in SECRET and isinstance(part, str))}
    return document


def _differences(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What is desired and not reported as such: the document as a whole, then each device."""
    desired, reported = found["version"] or 0, found["reported"] or {}
    rows = []
    if desired > (found["reported_version"] or 0):
        refused = reported.get("refused") == desired
        why = reported.get("reason") if refused else "not taken yet"
        rows.append({"what": "twin", "desired": desired, "reported": found["reported_version"] or 0, "why": why})
    for model, release in (found["state"] or {}).get("firmware", {}).items():
        progress = reported.get("firmware", {}).get(model, {})
        if (why := _unfinished(release, progress)) is not None:
            version = progress.get("version")
            rows.append({"what": f"firmware {model}", "desired": release["version"], "reported": version, "why": why})
    for name in (found["state"] or {}).get("devices", {}):
        confirmed, problem = reported.get("confirmed", {}).get(name), reported.get("errors", {}).get(name)
        if problem or confirmed is None:
            why = problem or "the device has not confirmed"
            rows.append({"what": name, "desired": None, "reported": confirmed, "why": why})
    return rows


def _unfinished(release: dict[str, Any], progress: dict[str, Any]) -> str | None:
    """Why the devices of a model do not all run what they should; None when they do."""
    if progress.get("release") != release["release"]:
        return "no report yet"
    if progress.get("problem"):
        return str(progress["problem"])
    failed = "; ".join(f"{device} {why}" for device, why in sorted(progress.get("failed", {}).items()))
    if progress["healthy"] < progress["devices"]:
        return f"{progress['healthy']} of {progress['devices']} devices" + (f"; {failed}" if failed else "")
    return None


def read_patch(patch: str) -> dict[str, Any]:
    """A merge patch as it is given to an option: JSON, or @FILE."""
    text = patch
    if patch.startswith("@"):
        path = Path(patch[1:])
        if path.stat().st_size > PATCH_BYTES_MAX:
            raise BadInput(f"{path} is larger than {PATCH_BYTES_MAX} bytes.")
        text = path.read_text(encoding="utf-8")
    try:
        document = strict_json.load(text)
    except strict_json.RepeatedName as error:
        raise BadInput(f"The patch is ambiguous: {error}.", hint="Nobody can tell which of the two is meant.") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"The patch is not JSON: {error}", hint="""For example --patch '{"limits": {}}'""") from None
    if not isinstance(document, dict):
        raise BadInput("A patch is a JSON object.", hint="""For example --patch '{"limits": {}}'""")
    return document
