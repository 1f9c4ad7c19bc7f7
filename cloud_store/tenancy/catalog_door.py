"""What an item must be to come into the catalogue; what is in it already was taken by an older door."""

from typing import Final

from wire_protocol import names
from wire_protocol.catalog import CatalogItem
from wire_protocol.errors import InvalidName

NAME_CHARS_MAX: Final = 200
UNIT_CHARS_MAX: Final = 16


def require_item(item: CatalogItem) -> CatalogItem:
    """Return an item unchanged.

    Raises:
        InvalidName: a name has another spelling than the one (`names.misspelt`), or its GTIN is none.
    """
    names.text(item.sku, "SKU")
    for what, value, chars_max in (("name", item.name, NAME_CHARS_MAX), ("unit", item.unit, UNIT_CHARS_MAX)):
        if value is not None and (problem := names.misspelt(value, chars_max)) is not None:
            raise InvalidName(f"The {what} of {item.sku} cannot be used: {problem}.")
    if item.gtin is not None:
        names.gtin(item.gtin)
    return item
