"""Quantities as people read them; ledgers and messages know integers of base units only."""


def shown(quantity: int, scale: int) -> str:
    """A quantity in units of its item, exactly, as people read it: 2850 of scale 3 is 2.85.

    Args:
        quantity: in base units, as ledgers keep it.
        scale: of the item, 0 to 6.
    """
    if not scale:
        return str(quantity)
    whole, part = divmod(abs(quantity), 10**scale)
    digits = f"{part:0{scale}}".rstrip("0")
    return f"{'-' if quantity < 0 else ''}{whole}{f'.{digits}' if digits else ''}"
