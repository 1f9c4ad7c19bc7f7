"""UCI Online Retail (Chen, Sain, Guo 2012) as a recording: countries are sites, tills are devices.

The shop's invoices know no till, so each invoice is given one by its number: consecutive invoices go to the next till.
Nothing is tidied: postage, manual corrections, damaged goods and duplicates were typed into a till too.
"""

import re
from datetime import datetime
from typing import Final

from firmware_sim.recordings.convert.writer import Columns, Converted, RowUnusable
from wire_protocol import names
from wire_protocol.entries import QUANTITY_MAX
from wire_protocol.errors import InvalidName

COLUMNS: Final = ("InvoiceNo", "StockCode", "Quantity", "InvoiceDate", "Country")
TILLS: Final = 4
_NOT_SLUG: Final = re.compile(r"[^a-z0-9]+")
_NOT_DIGIT: Final = re.compile(r"[^0-9]")


class OnlineRetail:
    """Converts rows; `tills` is how many each site has."""

    columns = COLUMNS

    def __init__(self, tills: int = TILLS) -> None:
        self._tills = tills

    def __call__(self, row: Columns) -> Converted:
        invoice = _NOT_DIGIT.sub("", row["InvoiceNo"])  # a cancellation is C and the number
        if not invoice:
            raise RowUnusable("the invoice has no number")
        return Converted(
            time=utc(row["InvoiceDate"]),
            site=site(row["Country"]),
            device=f"till-{int(invoice) % self._tills + 1}",
            sku=sku(row["StockCode"]),
            quantity=quantity(row["Quantity"]),
        )


def site(country: str) -> str:
    """A country's name as a site's: `United Kingdom` is `united-kingdom`."""
    try:
        return names.slug(_NOT_SLUG.sub("-", country.lower()).strip("-"), "site")
    except InvalidName:
        raise RowUnusable("the country is no name") from None


def sku(code: str) -> str:
    """A stock code without blanks around it."""
    try:
        return names.text(code.strip(), "SKU")
    except InvalidName:
        raise RowUnusable("the stock code is no SKU") from None


def quantity(text: str) -> int:
    """Pieces; a recording has no rows of zero."""
    try:
        number = float(text)
    except ValueError:
        raise RowUnusable("the quantity is no number") from None
    if not number.is_integer() or abs(number) > QUANTITY_MAX:
        raise RowUnusable("the quantity is not whole, or out of bounds")
    if not number:
        raise RowUnusable("the quantity is zero")
    return int(number)


def utc(text: str) -> str:
    """The shop's own time, taken as UTC."""
    try:
        return f"{datetime.fromisoformat(text).replace(tzinfo=None).isoformat()}Z"
    except ValueError:
        raise RowUnusable("the time is not one") from None
