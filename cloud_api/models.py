"""The documents the API answers with; examples are part of the OpenAPI page."""

from datetime import datetime
from typing import Generic, TypeVar

from pydantic import BaseModel, Field

RowT = TypeVar("RowT", bound=BaseModel)


class Page(BaseModel, Generic[RowT]):
    """A page; give `next` back as `after` to get the following one. Without `next` this is the last.

    A page about the past may have fewer rows than asked, or none, and still a `next`.
    """

    items: list[RowT]
    next: str | None = Field(None, description="Opaque; valid as long as the filters stay the same.")


class StockRow(BaseModel):
    """What is on hand of one SKU and lot at one location, in 1/10^scale of its unit."""

    site: str = Field(examples=["berlin"])
    location: str = Field(examples=["A-01-3"])
    sku: str = Field(examples=["85123A"])
    lot: str = Field(examples=[""], description="Empty for goods without a lot.")
    on_hand: int = Field(examples=[42], description="Negative when more was taken than was ever booked in.")
    unit: str = Field(examples=["piece"])
    scale: int = Field(examples=[0])
    stub: bool = Field(description="Scanned before the item was registered.")


class MovementRow(BaseModel):
    """A quantity taken from one location and given to another."""

    site: str = Field(examples=["berlin"])
    gateway: str = Field(examples=["gw-berlin-1"])
    epoch: str
    seq: int = Field(examples=[4711], description="Number of the entry in its gateway's ledger.")
    at: datetime = Field(description="True time as well as it is known.")
    claimed_ms: int | None = Field(None, description="The time the gateway claimed, when that had to be bounded.")
    kind: str = Field(examples=["pick"])
    sku: str = Field(examples=["85123A"])
    lot: str = ""
    serial: str | None = None
    quantity: int = Field(examples=[3])
    source: str = Field(examples=["A-01-3"])
    destination: str = Field(examples=["@customer"])
    device: str | None = Field(None, examples=["scanner-7"])
    event: str | None = None
    actor: str | None = None
    reference: str | None = Field(None, examples=["ORDER-1031"])
    device_at: datetime | None = None


class GatewayRow(BaseModel):
    """A gateway: what it last said about itself, and how far its streams are merged."""

    site: str = Field(examples=["berlin"])
    gateway: str = Field(examples=["gw-berlin-1"])
    registered: str = Field(examples=["active"])
    state: str | None = Field(None, examples=["online"], description="Absent until the gateway has reported it.")
    version: str | None = None
    heard_at: datetime | None = None
    clock_offset_ms: int | None = None
    backlog: int | None = Field(None, description="Entries not acknowledged at its last report.")
    dead_letters: int | None = None
    readings_dropped: int | None = None
    devices_online: int | None = None
    stock_proved_at: datetime | None = None
    stock_differs: bool | None = None
    ledger_frame: int | None = None
    ledger_seq: int | None = None
    ledger_at: datetime | None = None
    readings_frame: int | None = None
    readings_seq: int | None = None


class ItemRow(BaseModel):
    """What a SKU names."""

    sku: str = Field(examples=["85123A"])
    name: str | None = Field(None, examples=["White hanging heart"])
    gtin: str | None = None
    unit: str = Field(examples=["piece"])
    scale: int = Field(examples=[0])
    reorder_point: int | None = None
    lot_tracked: bool = False
    serial_tracked: bool = False
    expiry_tracked: bool = False
    retired: bool = False
    stub: bool = Field(description="Scanned before the item was registered.")
    merged_into: str | None = Field(None, description="The SKU that it stands for, under which reports show it.")


class SiteRow(BaseModel):
    """A site."""

    site: str = Field(examples=["berlin"])
    created_at: datetime
    gateways: int


class LocationRow(BaseModel):
    """A place for goods."""

    site: str = Field(examples=["berlin"])
    location: str = Field(examples=["A-01-3"])
    virtual: bool
    stub: bool = Field(description="Scanned before the location was registered.")
    merged_into: str | None = Field(None, description="The location that it stands for, as reports show it.")


class AlarmRow(BaseModel):
    """What an operator must look at."""

    site: str | None = None
    gateway: str = Field(examples=["gw-berlin-1"])
    kind: str = Field(examples=["fork"])
    detail: str
    advice: str = Field(description="What to do about it.")
    first_at: datetime
    last_at: datetime
    times: int
    cleared_at: datetime | None = None


class Health(BaseModel):
    """Whether the process runs, or can serve."""

    status: str = Field(examples=["ok"])
