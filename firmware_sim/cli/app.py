"""`stocktide sim`: fleets of devices, replays of recorded sales, converters.

Heavy imports happen inside the commands.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from command_line.output import ErrorGroup, emit_json, table
from firmware_sim.cli import fleets
from firmware_sim.cli.convert import convert_app
from firmware_sim.cli.device import device
from firmware_sim.cli.options import Boot, Json, MqttVersionText, Quiet, StallS
from firmware_sim.cli.output import emit_report, number
from firmware_sim.fleet.pace import parse_speed
from firmware_sim.scenarios import builtin

if TYPE_CHECKING:
    from firmware_sim.recordings.replay import ReplayPlan
    from wire_protocol.address import BrokerAddress

app = typer.Typer(
    cls=ErrorGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Devices that behave like real firmware; replays of recorded data.",
)
app.add_typer(convert_app, name="convert")
app.command()(device)

Site = Annotated[list[str] | None, typer.Option("--site", "-s", help="Only this site; may be given several times.")]
Map = Annotated[list[str] | None, typer.Option("--map", "-m", metavar="SITE=URL", help="The broker of one site.")]
OneBroker = Annotated[str | None, typer.Option("--broker", "-b", metavar="URL", help="The broker of all other sites.")]
Limit = Annotated[int | None, typer.Option("--limit", "-n", min=1, help="Rows at most.")]
Brokers = Annotated[
    list[str] | None,
    typer.Option("--broker", "-b", metavar="[GATEWAY=]URL", help="A gateway's broker, mqtt://[user:password@]host."),
]
SpeedText = Annotated[str, typer.Option("--speed", help="Simulated seconds per second, or `max`.")]


@app.command()
def run(
    scenario: Annotated[Path, typer.Argument(help="A scenario, .yaml, or the name of one of ours.")],
    broker: Brokers = None,
    speed: Annotated[str | None, typer.Option("--speed", help="Simulated seconds per second, or `max`.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Another day; default: the scenario's.")] = None,
    boot: Boot = None,
    mqtt_version: MqttVersionText = "5",
    stall_s: StallS = 60.0,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Live through a scenario: devices with their habits and their faults."""
    from firmware_sim.scenarios import scenario as scenarios

    path = builtin.resolve(scenario)
    options: dict[str, Any] = {"options": fleets.link_options(mqtt_version), "stall_s_max": stall_s}
    if speed is not None:
        options["speed"] = parse_speed(speed)
    loaded = scenarios.load(path)
    found = fleets.brokers_of(list(loaded.gateways), broker or [])
    fleets.refuse_shared(found, loaded.device_names)
    fleet = loaded.fleet(found, path.parent, seed=seed, boot=fleets.boot_counter(boot), **options)
    report = fleets.run(fleet, events_total=None, quiet=quiet)
    emit_report(report, as_json=json_, extra={"seed": loaded.seed if seed is None else seed})


@app.command("list")
def list_(
    file: Annotated[Path | None, typer.Argument(help="A scenario or recording: which devices does it need?")] = None,
    json_: Json = False,
) -> None:
    """The scenarios and recordings that come with Stocktide; or the gateways and devices of one file."""
    from firmware_sim.scenarios import listing

    if file is None:
        rows = listing.ours()
        columns: tuple[str, ...] = ("name", "what", "description")
    else:
        rows = listing.devices(builtin.resolve(file))
        columns = ("gateway", "devices")
    if json_:
        emit_json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        shown = [[", ".join(cell) if isinstance(cell, list) else cell for cell in row] for row in rows]
        table(columns, shown)


@app.command()
def replay(
    file: Annotated[Path, typer.Argument(help="A recording, .csv or .csv.gz, or the name of one of ours.")],
    speed: SpeedText = "max",
    site: Site = None,
    map_: Map = None,
    broker: OneBroker = None,
    limit: Limit = None,
    limit_per_site: Annotated[int | None, typer.Option("--limit-per-site", min=1, help="At most, each site.")] = None,
    opening_stock: Annotated[
        bool, typer.Option("--opening-stock", help="First receive what will be sold, so no shelf goes below zero.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="A bad row is an error.")] = False,
    boot: Boot = None,
    mqtt_version: MqttVersionText = "5",
    stall_s: StallS = 60.0,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Play recorded sales and returns as device events, at recorded times."""
    from firmware_sim.recordings import replay as replays

    pace, options, first_boot = parse_speed(speed), fleets.link_options(mqtt_version), fleets.boot_counter(boot)
    plan = replays.plan(
        builtin.resolve(file),
        sites=site,
        limit=limit,
        limit_per_site=limit_per_site,
        opening_stock=opening_stock,
        strict=strict,
    )
    found = fleets.brokers_of(list(plan.sites), [*(map_ or []), *([broker] if broker else [])], option="--map")
    plan.prefixed = frozenset(fleets.shared(found))
    if not json_:
        _announce(plan, found)
    fleet = plan.fleet(found, boot=first_boot, speed=pace, options=options, stall_s_max=stall_s)
    report = fleets.run(fleet, events_total=plan.events, quiet=quiet)
    emit_report(report, as_json=json_, extra=_bad_rows_json(plan))


def _announce(plan: "ReplayPlan", brokers: "dict[str, BrokerAddress]") -> None:
    for bad in plan.bad_rows_listed:
        typer.echo(f"bad row: {plan.path.name}, {bad}", err=True)
    if plan.bad_rows > len(plan.bad_rows_listed):
        typer.echo(f"bad row: and {plan.bad_rows - len(plan.bad_rows_listed)} more", err=True)
    gateways = len({(broker.host, broker.port) for broker in brokers.values()})
    devices = sum(map(len, plan.device_names.values()))
    typer.echo(
        f"{number(plan.rows, 'row')} of {number(len(plan.sites), 'site')} over {plan.span_s / 86_400:.1f} days, "
        f"{number(devices, 'device')}, {number(gateways, 'broker')}\n"
    )


def _bad_rows_json(plan: "ReplayPlan") -> dict[str, Any]:
    return {
        "rows": plan.rows,
        "bad_rows": plan.bad_rows,
        "bad_rows_listed": [{"line": bad.line, "reason": bad.reason} for bad in plan.bad_rows_listed],
    }
