"""Device twins: what the cloud wants a gateway and its devices to be, and what they say they are.

The rules, of which docs/twins.md tells more:

1. Desired state is one document for each gateway, with a version that grows with every change of its content.
2. A change is a JSON merge patch (RFC 7396): fields that are given replace, `null` removes, the rest stays.
3. A gateway takes a document whole or not at all, and only one that is newer than what it has.
4. A device's configuration has the version of the document that last changed it, so that no other device is disturbed.
5. Devices of the document belong to it and leave with it; those that a technician has added at the gateway stay.
6. Limits narrow what the gateway's own settings admit, and never widen it.

Invariant: pure functions of their arguments; a document that does not fit its bounds is never made.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Self

from pydantic import AllowInfNan, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from wire_protocol import names
from wire_protocol.entries import MetricName
from wire_protocol.errors import WireError
from wire_protocol.firmware import MODELS_MAX, Model, Release, ReportedFirmware
from wire_protocol.messages import Count, Message, Reason
from wire_protocol.passwords import PasswordHash
from wire_protocol.problems import first_problem

DEVICES_MAX: Final = 1000
METRICS_MAX: Final = 16
SETTINGS_MAX: Final = 64
PATCH_DEPTH_MAX: Final = 8

Finite = Annotated[float, AllowInfNan(False)]
SettingName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,47}$")]
SettingValue = Annotated[str, StringConstraints(max_length=256)] | bool | int | Finite
DeviceKind = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,31}$")]


class InvalidTwin(WireError, ValueError):
    """A change would make a document that no gateway could take."""


class _Strict(BaseModel):
    """Part of a document that operators write: a misspelt field must not be lost in silence."""

    model_config = ConfigDict(defer_build=True, strict=True, frozen=True, extra="forbid")


class Calibration(_Strict):
    """How a raw value becomes the true one: value * `factor` + `offset`, in the metric's unit."""

    factor: Finite = 1.0
    offset: Finite = 0.0


class Threshold(_Strict):
    """When a value is worth an alarm: below `low` or above `high`, in the metric's unit."""

    low: Finite | None = None
    high: Finite | None = None

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.low is None and self.high is None:
            raise ValueError("a threshold has a low or a high end")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError("a threshold's low end is above its high end")
        return self


class DeviceBody(_Strict):
    """The configuration of one device. `sampling_s` is the time between two samples, seconds."""

    location: names.LocationName | None = None
    sampling_s: Annotated[int, Field(ge=1, le=86_400)] | None = None
    calibration: Annotated[dict[MetricName, Calibration], Field(max_length=METRICS_MAX)] = {}
    thresholds: Annotated[dict[MetricName, Threshold], Field(max_length=METRICS_MAX)] = {}
    settings: Annotated[dict[SettingName, SettingValue], Field(max_length=SETTINGS_MAX)] = {}


class DesiredDevice(DeviceBody):
    """A device that may speak at the gateway, and its configuration. `key` is the hash of its password there."""

    kind: DeviceKind
    key: PasswordHash | None = None

    def body(self) -> DeviceBody:
        """The configuration alone."""
        return DeviceBody(**{name: getattr(self, name) for name in DeviceBody.model_fields})


class Limits(_Strict):
    """Bounds of the gateway: frames in flight, readings kept, acknowledged frames kept in seconds and in bytes."""

    window_frames: Annotated[int, Field(ge=1, le=1024)] | None = None
    readings: Annotated[int, Field(ge=1_000)] | None = None
    frame_keep_s: Annotated[int, Field(ge=0)] | None = None
    frame_keep_bytes: Annotated[int, Field(ge=1 << 20)] | None = None


class DesiredFirmware(Release):
    """The release that all devices of a model are to run (`wire_protocol.firmware`)."""

    model_config = ConfigDict(defer_build=True, strict=True, frozen=True, extra="forbid")


class DesiredState(_Strict):
    """What operators edit: the content of a twin without its version. Firmware is by model."""

    devices: Annotated[dict[names.DeviceName, DesiredDevice], Field(max_length=DEVICES_MAX)] = {}
    limits: Limits = Limits()
    firmware: Annotated[dict[Model, DesiredFirmware], Field(max_length=MODELS_MAX)] = {}

    @model_validator(mode="after")
    def _of_its_model(self) -> Self:
        if any(model != release.model for model, release in self.firmware.items()):
            raise ValueError("a release stands under the model that it is for")
        return self

    @model_validator(mode="after")
    def _nobody_else(self) -> Self:
        if names.AGENT_USER in self.devices:
            raise ValueError(f"no device may be named {names.AGENT_USER}: that is the agent's user name at its broker")
        return self


class DesiredTwin(Message):
    """What the cloud wants a gateway to be; an older version never overwrites a newer one."""

    bytes_max: ClassVar[int] = 256 * 1024

    version: Count
    state: DesiredState


class ReportedTwin(Message):
    """The twin that a gateway has in force: its version, the devices that confirmed their configuration, and errors.

    `confirmed` has the version of each such device's configuration; one that has not answered yet is in neither.
    `refused` is the version of a document that could not be taken, with the `reason`; `version` stays in force.
    `firmware` says, by model, how far devices are with the release that is wanted of them.
    """

    bytes_max: ClassVar[int] = 256 * 1024

    version: Count
    confirmed: Annotated[dict[names.DeviceName, Count], Field(default_factory=dict, max_length=DEVICES_MAX)]
    errors: Annotated[dict[names.DeviceName, Reason], Field(default_factory=dict, max_length=DEVICES_MAX)]
    refused: Count | None = None
    reason: Reason | None = None
    firmware: Annotated[dict[Model, ReportedFirmware], Field(default_factory=dict, max_length=MODELS_MAX)]


class DeviceConfig(Message, DeviceBody):
    """A device's configuration as it is retained on the gateway's broker; the device confirms `version`."""

    model_config = ConfigDict(defer_build=True, strict=True, frozen=True, extra="ignore")
    bytes_max: ClassVar[int] = 32 * 1024

    version: Count


def merged(state: Mapping[str, Any], patch: Mapping[str, Any]) -> DesiredState:
    """The document after a merge patch (RFC 7396), checked against every bound.

    Raises:
        InvalidTwin: the patch is too deep, or what it makes is not a valid document.
    """
    try:
        made = DesiredState.model_validate_json(json.dumps(_patched(state, patch, 0), allow_nan=False))
    except ValidationError as error:
        raise InvalidTwin(first_problem(error)) from None
    except (ValueError, TypeError) as error:
        raise InvalidTwin(f"The change is not JSON: {error}") from None
    size = len(DesiredTwin(version=(1 << 62) - 1, state=made).encode())
    if size > DesiredTwin.bytes_max:
        raise InvalidTwin(f"The twin would have {size} bytes; a gateway takes at most {DesiredTwin.bytes_max}.")
    for name, device in made.devices.items():
        size = len(DeviceConfig(version=(1 << 62) - 1, **device.body().model_dump()).encode())
        if size > DeviceConfig.bytes_max:
            raise InvalidTwin(f"Device {name} would have {size} bytes; at most {DeviceConfig.bytes_max}.")
    return made


def _patched(target: Any, patch: Any, depth: int) -> Any:
    if depth > PATCH_DEPTH_MAX:
        raise InvalidTwin(f"A change has at most {PATCH_DEPTH_MAX} levels.")
    if not isinstance(patch, Mapping):
        return patch
    result = dict(target) if isinstance(target, Mapping) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = _patched(result.get(name), value, depth + 1)
    return result


def version_of(payload: bytes) -> int | None:
    """The version of a document that could not be taken, if it can be read."""
    if len(payload) > DesiredTwin.bytes_max:
        return None
    try:
        said = _Version.model_validate_json(payload)
    except ValidationError:
        return None
    return said.version


class _Version(BaseModel):
    model_config = ConfigDict(defer_build=True, strict=True, extra="ignore")

    version: Count
