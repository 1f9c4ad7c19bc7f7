"""`stocktide cloud job`: a command, a change or a firmware for many gateways, a few first."""

from getpass import getuser
from typing import Annotated, Any

import typer

from cloud_cli.commands import arguments_of
from cloud_cli.errors import BadInput
from cloud_cli.options import DatabaseUrl, Json, Limit, Site, Tenant, database
from cloud_cli.twins import read_patch
from cloud_ingest.defaults import DATABASE_URL
from command_line.output import ErrorGroup, emit_json, listing
from command_line.streams import say, writes

job_app = typer.Typer(cls=ErrorGroup, no_args_is_help=True, help="Jobs: something for many gateways, in waves.")

Job = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")]


@job_app.command("create")
@writes
def create(
    gateways: Annotated[list[str] | None, typer.Argument(metavar="[GATEWAY…]", help="Gateways by name.")] = None,
    tenant: Tenant = None,
    site: Site = None,
    command: Annotated[str | None, typer.Option("--command", "-c", help="A command; see `command send`.")] = None,
    argument: Annotated[list[str] | None, typer.Option("--argument", "-a", help="NAME=VALUE of the command.")] = None,
    patch: Annotated[str | None, typer.Option("--patch", "-p", help="Or a change of twins, as JSON or @FILE.")] = None,
    firmware: Annotated[
        tuple[str, str] | None, typer.Option("--firmware", metavar="MODEL VERSION", help="Or a version for devices.")
    ] = None,
    waves: Annotated[str, typer.Option(help="Where each wave ends: gateways, or a share of all.")] = "1,10%,100%",
    failures: Annotated[float, typer.Option(min=0, max=100, help="End it when more percent of a wave fail.")] = 5.0,
    timeout_s: Annotated[int, typer.Option("--timeout", min=1, help="Seconds that a gateway may take.")] = 3600,
    rollback: Annotated[bool, typer.Option("--rollback", help="Go back when it fails.")] = False,
    database_url: DatabaseUrl = DATABASE_URL,
    json_: Json = False,
) -> None:
    """Begin a job: each wave begins when the one before it has ended well."""
    from cloud_store.provisioning import jobs, twins

    if [command, patch, firmware].count(None) != 2:  # noqa: PLR2004 - one of the three
        raise BadInput("What is to be done?", hint="Give one of --command, --patch and --firmware.")
    if not gateways and tenant is None:
        raise BadInput("Which gateways?", hint="Name them, or give --tenant and perhaps --site.")
    if rollback and command is not None:
        raise BadInput("A command cannot be taken back.", hint="--rollback goes with --patch and --firmware.")
    document = None if patch is None else read_patch(patch)
    spec = jobs.Spec(command, arguments_of(argument or []), document, firmware)
    rollout = jobs.Rollout(tuple(waves.split(",")), failures, timeout_s, rollback)
    wanted = twins.Selection(tuple(gateways) if gateways else None, tenant, site)
    with database(database_url) as connection:
        job = jobs.create(connection, wanted, spec, rollout, who=getuser())
    _told({"job": job}, f"Job {job} has begun; see: stocktide cloud job show {job}", json_=json_)


@job_app.command("list")
def list_(database_url: DatabaseUrl = DATABASE_URL, limit: Limit = 20, json_: Json = False) -> None:
    """List the latest jobs and how far they are."""
    from cloud_store.provisioning import jobs

    with database(database_url) as connection:
        rows = jobs.listing(connection, limit=limit)
    numbers = ("gateways", "waiting", "started", "succeeded", "failed", "unconfirmed", "rolled_back")
    listing(rows, ("job", "state", *numbers, "reason"), json_=json_, numbers=numbers, empty="No jobs yet.")


@job_app.command("show")
def show(job: Job, database_url: DatabaseUrl = DATABASE_URL, limit: Limit = 1000, json_: Json = False) -> None:
    """Show the gateways of a job."""
    from cloud_store.provisioning import jobs

    with database(database_url) as connection:
        rows = jobs.targets(connection, job, limit=limit)
    columns = ("wave", "gateway", "state", "healthy", "reason")
    listing(rows, columns, json_=json_, numbers=("wave",), empty="")


@job_app.command("pause")
@writes
def pause(job: Job, database_url: DatabaseUrl = DATABASE_URL, json_: Json = False) -> None:
    """Begin nothing more of a job for now; what has begun goes on."""
    from cloud_store.provisioning import jobs

    with database(database_url) as connection:
        jobs.pause(connection, job)
    _told({"job": job, "state": jobs.JobState.PAUSED}, f"Job {job} is paused.", json_=json_)


@job_app.command("resume")
@writes
def resume(job: Job, database_url: DatabaseUrl = DATABASE_URL, json_: Json = False) -> None:
    """Go on with a paused job."""
    from cloud_store.provisioning import jobs

    with database(database_url) as connection:
        jobs.resume(connection, job)
    _told({"job": job, "state": jobs.JobState.RUNNING}, f"Job {job} goes on.", json_=json_)


@job_app.command("abort")
@writes
def abort(
    job: Job,
    rollback: Annotated[bool, typer.Option("--rollback", help="Put twins back as they were, firmware too.")] = False,
    database_url: DatabaseUrl = DATABASE_URL,
    json_: Json = False,
) -> None:
    """End a job for good."""
    from cloud_store.provisioning import jobs

    with database(database_url) as connection:
        undone = jobs.abort(connection, job, rollback=rollback)
    sentence = f"Job {job} is aborted; {undone} twins went back."
    _told({"job": job, "state": jobs.JobState.ABORTED, "rolled_back": undone}, sentence, json_=json_)


def _told(document: dict[str, Any], sentence: str, *, json_: bool) -> None:
    emit_json(document) if json_ else say(sentence)
