"""Scenarios: gateways and devices, their day and their faults, as YAML that is checked before anything runs.

Invariant: every error names the line and the field; a key that nobody knows is an error, and so is one given twice.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import yaml
from pydantic import Field, ValidationError, field_validator

from firmware_sim.devices.base import HOUR_MS, Device, ScenarioPart
from firmware_sim.devices.handheld import Handheld
from firmware_sim.devices.portal import Portal
from firmware_sim.devices.probe import Probe
from firmware_sim.devices.scale import Scale
from firmware_sim.devices.scanner import Scanner
from firmware_sim.errors import BadScenario
from firmware_sim.faults.radio import RadioChannel
from firmware_sim.firmware.event_queue import Firmware
from firmware_sim.firmware.happening import Happening
from firmware_sim.firmware.windows import Window
from firmware_sim.fleet.device import SimulatedDevice, rng_of
from firmware_sim.fleet.fleet import Fleet, Stream
from wire_protocol import names
from wire_protocol.address import BrokerAddress

SCENARIO_BYTES_MAX: Final = 1_000_000
GATEWAYS_MAX: Final = 1_000

AnyDevice = Annotated[Scanner | Portal | Scale | Probe | Handheld, Field(discriminator="kind")]


class GatewayPart(ScenarioPart):
    """One gateway's devices."""

    devices: Annotated[list[AnyDevice], Field(min_length=1, max_length=1_000)]


class Scenario(ScenarioPart):
    """A whole scenario; times of its parts are relative to `start`."""

    description: Annotated[str, Field(max_length=1_000)] = ""
    seed: Annotated[int, Field(ge=0)] = 1
    start: datetime
    hours: Annotated[float, Field(gt=0, le=24 * 366)]
    speed: Annotated[float, Field(gt=0, le=10_000_000)] = 60.0
    gateways: Annotated[dict[names.GatewayName, GatewayPart], Field(min_length=1, max_length=GATEWAYS_MAX)]

    @field_validator("gateways")
    @classmethod
    def _named_once(cls, gateways: dict[str, GatewayPart]) -> dict[str, GatewayPart]:
        for gateway, part in gateways.items():
            all_names = [name for device in part.devices for name in device.device_names]
            twice = next((name for name in all_names if all_names.count(name) > 1), None)
            if twice is not None:
                raise ValueError(f"gateway {gateway} has device {twice} twice")
        return gateways

    @property
    def span(self) -> Window:
        start = self.start if self.start.tzinfo else self.start.replace(tzinfo=UTC)
        start_ms = int(start.timestamp() * 1_000)
        return Window(start_ms, start_ms + round(self.hours * HOUR_MS))

    @property
    def device_names(self) -> dict[str, list[str]]:
        """The devices that each gateway must know."""
        return {
            gateway: [name for device in part.devices for name in device.device_names]
            for gateway, part in self.gateways.items()
        }

    def streams(self, folder: Path, *, seed: int | None = None, boot: int = 1) -> list[Stream]:
        """A stream for each device: none waits for another.

        Args:
            folder: where the scenario lies; recorded readings are looked for there.
            seed: instead of the scenario's own.
            boot: how often the devices have booted before.
        """
        seed = self.seed if seed is None else seed
        return [
            Stream(
                gateway,
                [self._unit(device, name, gateway, seed=seed, boot=boot)],
                [self._day(device, name, gateway, seed, folder)],
            )
            for gateway, part in self.gateways.items()
            for device in part.devices
            for name in device.device_names
        ]

    def fleet(
        self,
        brokers: Mapping[str, BrokerAddress],
        folder: Path,
        *,
        seed: int | None = None,
        boot: int = 1,
        **options: Any,
    ) -> Fleet:
        """A fleet that lives through this scenario; `brokers` by gateway, `options` as for `Fleet`."""
        options.setdefault("speed", self.speed)
        streams = self.streams(folder, seed=seed, boot=boot)
        link_seed = self.seed if seed is None else seed
        return Fleet(brokers, streams, start_ms=self.span.start_ms, seed=link_seed, **options)

    def _unit(self, device: Device, name: str, gateway: str, *, seed: int, boot: int) -> SimulatedDevice:
        start_ms = self.span.start_ms
        firmware = Firmware(
            name=name,
            rng=rng_of(seed, name, f"{gateway}/firmware"),
            boot=boot,
            memory_events_max=device.memory_events_max,
            offline=[span.window(start_ms) for span in device.offline],
            reboots=device.faults.reboots_ms(start_ms),
            clock=device.faults.clock(start_ms),
        )
        return SimulatedDevice(
            firmware, RadioChannel(device.faults.stages(start_ms), rng_of(seed, name, f"{gateway}/air"))
        )

    def _day(self, device: Device, name: str, gateway: str, seed: int, folder: Path) -> Iterator[tuple[str, Happening]]:
        rng = rng_of(seed, name, f"{gateway}/day")
        return ((name, happening) for happening in device.day(self.span, rng, folder))


def load(path: Path) -> Scenario:
    """Read and check a scenario.

    Raises:
        BadScenario: it cannot be read, is not YAML, or does not say what a scenario says; with line and field.
    """
    try:
        with path.open("rb") as file:
            content = file.read(SCENARIO_BYTES_MAX + 1)
    except OSError as error:
        raise BadScenario(f"{path} cannot be read: {error.strerror}.") from None
    if len(content) > SCENARIO_BYTES_MAX:
        raise BadScenario(f"{path.name} is larger than {SCENARIO_BYTES_MAX} bytes.")
    try:
        text = content.decode()
        root = _checked(yaml.compose(text, yaml.SafeLoader), path)
        return Scenario.model_validate(yaml.safe_load(text))
    except UnicodeDecodeError:
        raise BadScenario(f"{path.name} is not UTF-8.") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BadScenario(f"{path.name}, line {line}: not YAML: {error.problem}.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, ValidationError):
            raise BadScenario(_problem(error, root, path)) from None
        raise BadScenario(f"{path.name}: not YAML: {str(error).splitlines()[0]}.") from None


def _checked(root: yaml.Node | None, path: Path) -> yaml.Node:
    """The tree with the line numbers; refuses what the loader would silently drop or multiply."""
    if root is None:
        raise BadScenario(f"{path.name} is empty.")
    seen: set[int] = set()
    pending = [root]
    while pending:
        node = pending.pop()
        if id(node) in seen:
            # A few lines of aliases of aliases can stand for gigabytes.
            raise BadScenario(f"{path.name}, line {node.start_mark.line + 1}: aliases (*name) are not taken.")
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            _check_keys(node, path)
            pending += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            pending += node.value
    return root


def _check_keys(node: yaml.MappingNode, path: Path) -> None:
    keys: set[str] = set()
    for key, _ in node.value:
        if key.value in keys:
            raise BadScenario(f"{path.name}, line {key.start_mark.line + 1}: {key.value} is given twice.")
        keys.add(str(key.value))


def _problem(error: ValidationError, root: yaml.Node, path: Path) -> str:
    """One line: where in the file, which field, what is wrong."""
    first = error.errors(include_url=False)[0]
    line, field = _locate(root, first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "nobody knows this field"
    given = first["input"]
    shown = f", not {given!r}" if isinstance(given, str | int | float) and len(repr(given)) < 60 else ""  # noqa: PLR2004 - one line
    if first["type"] in {"extra_forbidden", "value_error"}:
        shown = ""
    return f"{path.name}, line {line}, {field or 'scenario'}: {message}{shown}."


def _locate(root: yaml.Node, loc: tuple[int | str, ...]) -> tuple[int, str]:
    """Line and dotted name of a place; parts of `loc` that are pydantic's own (the kind of a device) lead nowhere."""
    node, line, names_ = root, root.start_mark.line + 1, []
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == str(part)), None)
            if found is None:
                if part == loc[-1]:
                    names_.append(str(part))  # a field that is missing
                continue
            key, node = found
            line = key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            continue
        names_.append(str(part))
    return line, ".".join(names_)
