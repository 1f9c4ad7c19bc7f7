"""The contract both ends of the link share: topics, messages, clock, frames, replication, stock.

Invariant: this package is pure. It performs no I/O, reads no clock and draws no randomness; time and random bytes
are arguments. It imports the standard library and pydantic only.
"""

from typing import Final

PROTOCOL_VERSION: Final = 1
