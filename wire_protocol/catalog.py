"""The catalogue on the link: items and locations in the order of their last change, read page by page.

A position is a version and a key. Each item and location has the version of the change that last touched it, and
within a version they are ordered by key, so a gateway that says how far it is gets exactly what it lacks: everything
the first time, one item when one has changed.

Invariant: a page says where it begins; a gateway at another position does not take it.
"""

from typing import Annotated, ClassVar, Final

from pydantic import Field, StringConstraints

from wire_protocol import names
from wire_protocol.messages import Count, Message, Part

PAGE_ENTRIES_MAX: Final = 500
PAGE_BYTES_TARGET: Final = 192 * 1024

# "i" and a SKU, or "l" and a location; empty before the first.
CatalogKey = Annotated[str, StringConstraints(max_length=65)]


class CatalogItem(Part):
    """One item: its quantities are integers of `unit` / 10**`scale`, as is its reorder point.

    A retired item is no longer ordered; what is left of it is still stock.
    """

    sku: names.Sku
    name: Annotated[str, StringConstraints(max_length=200)] | None = None
    gtin: Annotated[str, StringConstraints(pattern=r"^\d{8,14}$")] | None = None
    unit: Annotated[str, StringConstraints(max_length=16)] = "piece"
    scale: Annotated[int, Field(ge=0, le=6)] = 0
    lot_tracked: bool = False
    serial_tracked: bool = False
    expiry_tracked: bool = False
    reorder_point: Annotated[int, Field(ge=0, lt=1 << 62)] | None = None
    retired: bool = False


class CatalogPosition(Part):
    """How far somebody has read; before the first it is version 0."""

    version: Count = 0
    key: CatalogKey = ""


class CatalogRequest(Message):
    """A gateway asks for what follows a position."""

    after: CatalogPosition = CatalogPosition()


class CatalogPage(Message):
    """What follows `after`, up to `upto`; `more` says to ask again. Without entries it says only that there is more.

    `head` is the latest version in the cloud: a gateway that is beyond it reads everything again, because the cloud has
    lost what it has read.
    """

    bytes_max: ClassVar[int] = 256 * 1024

    after: CatalogPosition
    upto: CatalogPosition
    head: Count
    items: Annotated[tuple[CatalogItem, ...], Field(max_length=PAGE_ENTRIES_MAX)] = ()
    locations: Annotated[tuple[names.LocationName, ...], Field(max_length=PAGE_ENTRIES_MAX)] = ()
    more: bool = False
