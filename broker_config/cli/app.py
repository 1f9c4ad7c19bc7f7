"""`stocktide broker`: render a broker's configuration, keep its passwords, run the embedded one, show the policy.

Invariant: nothing is printed but the answer, on standard output; what went wrong goes to standard error with a hint.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from broker_config import files, passwords, policy
from broker_config.cli.fleet import fleet_files
from broker_config.cli.run import run, run_fleet
from broker_config.errors import InvalidConfig
from broker_config.limits import BrokerLimits
from broker_config.mosquitto import CONFIG_FILE, PASSWORD_FILE, Auth, BrokerTlsFiles, MosquittoConfig, TlsFiles, render
from broker_config.policy import Side
from command_line.output import ErrorGroup, emit_json, table
from command_line.output import as_json as json_text
from command_line.streams import say, say_secret, writes

app = typer.Typer(
    cls=ErrorGroup,
    name="broker",
    help="Broker configuration from the topic policy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("fleet")(fleet_files)
app.command("run")(run)
app.command("run-fleet")(run_fleet)
AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
PORTS = "Port to listen on."
LIMITS_HINT = "See: stocktide broker limits"


@app.command("render")
@writes
def render_files(
    out: Annotated[Path, typer.Option(help="Directory to write to; the broker reads from there.")],
    side: Annotated[Side, typer.Option(help="The cloud's broker, or a gateway's own.")] = Side.CLOUD,
    auth: Annotated[Auth, typer.Option(help="How clients prove who they are.")] = Auth.PASSWORD,
    address: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help=PORTS)] = 1883,
    cafile: Annotated[Path | None, typer.Option(help="Authorities of clients with certificates, PEM.")] = None,
    certfile: Annotated[Path | None, typer.Option(help="The broker's own certificate, PEM.")] = None,
    keyfile: Annotated[Path | None, typer.Option(help="The broker's own key, PEM.")] = None,
    data: Annotated[Path | None, typer.Option(help="Directory for what the broker stores; OUT unless given.")] = None,
    limit: Annotated[list[str] | None, typer.Option(help="NAME=VALUE, see `stocktide broker limits`.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a complete mosquitto.conf and ACL file."""
    config = MosquittoConfig(
        side=side,
        auth=auth,
        directory=out.absolute(),
        address=address,
        port=port,
        tls=_tls(cafile, certfile, keyfile),
        limits=_limits(side, limit or []),
        data_directory=data.absolute() if data else None,
    )
    written = _write(config)
    start = f"mosquitto -c {config.directory / CONFIG_FILE}"
    if as_json:
        emit_json({"files": [str(file) for file, _ in written], "start": start})
        return
    table(["file", "what"], [[str(file), what] for file, what in written])
    say(f"\nStart it with: {start}")
    if auth is Auth.PASSWORD:
        say(f"Add users with: stocktide broker passwd {config.directory / PASSWORD_FILE} USER")


@app.command()
@writes
def passwd(
    file: Annotated[Path, typer.Argument(help="Password file; it is made if need be.")],
    user: Annotated[str, typer.Argument(help="Name of a gateway, device, claim or service.")],
    password_stdin: Annotated[bool, typer.Option(help="Read the password from standard input.")] = False,
    generate: Annotated[bool, typer.Option(help="Make a random password and print it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Add a user to a password file, or change its password. The broker reads the file again on SIGHUP."""
    if generate:
        password = passwords.generate()
    elif password_stdin:
        password = sys.stdin.readline().rstrip("\n")
    else:
        password = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    passwords.set_password(file, user, password)
    if generate:
        document = {"file": str(file), "user": user, "password": password}
        lost = f"{user} has a password in {file} that nobody knows; the next one replaces it."
        say_secret(json_text(document) if as_json else password, lambda: lost)
    elif as_json:
        emit_json({"file": str(file), "user": user})
    else:
        say(f"{user} is in {file}.")


@app.command("policy")
def show_policy(as_json: AsJson = False) -> None:
    """Show who may publish and subscribe where; {owner} is the client's own user name."""
    rows = [
        {"broker": side, "role": grant.role, "may": grant.action, "topic": grant.pattern, "qos": grant.rule.qos}
        for side in Side
        for grant in policy.grants(side)
    ]
    if as_json:
        emit_json(rows)
    else:
        table(list(rows[0]), [[str(cell) for cell in row.values()] for row in rows])


@app.command("limits")
def show_limits(as_json: AsJson = False) -> None:
    """Show every bound of a rendered broker with its default on either side."""
    defaults = [BrokerLimits.for_side(side).model_dump() for side in Side]
    rows = [
        [name, *(default[name] for default in defaults), field.description or ""]
        for name, field in BrokerLimits.model_fields.items()
    ]
    heads = ["limit", *Side, "what"]
    if as_json:
        emit_json([dict(zip(heads, row, strict=True)) for row in rows])
    else:
        table(heads, [[str(cell) for cell in row] for row in rows])


def _tls(cafile: Path | None, certfile: Path | None, keyfile: Path | None) -> BrokerTlsFiles | None:
    if certfile and keyfile:
        own = BrokerTlsFiles(certfile=certfile.absolute(), keyfile=keyfile.absolute())
        return TlsFiles(**own.model_dump(), cafile=cafile.absolute()) if cafile else own
    if cafile or certfile or keyfile:
        raise InvalidConfig(
            "TLS needs the broker's own certificate and key.",
            hint="Give --certfile and --keyfile; --cafile too for clients with certificates.",
        )
    return None


def _limits(side: Side, given: list[str]) -> BrokerLimits:
    changes = {}
    for text in given:
        name, _, value = text.partition("=")
        if name not in BrokerLimits.model_fields or not value.isdecimal():
            raise InvalidConfig(f"{text!r} is not a limit.", hint=LIMITS_HINT)
        changes[name] = int(value)
    try:
        return BrokerLimits.for_side(side, **changes)
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidConfig(f"{first['loc'][0]}: {first['msg']}.", hint=LIMITS_HINT) from None


def _write(config: MosquittoConfig) -> list[tuple[Path, str]]:
    files.make_folder(config.directory)
    written = []
    for name, text in render(config).items():
        file = config.directory / name
        files.write(file, text)
        written.append((file, "configuration" if name == CONFIG_FILE else "who may do what"))
    password_file = config.directory / PASSWORD_FILE
    if config.auth is Auth.PASSWORD and not password_file.exists():
        passwords.write(password_file, {})
        written.append((password_file, "users, none yet"))
    return written
