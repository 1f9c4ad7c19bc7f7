"""The devices that may speak at this gateway, and what the agent sends each of them."""

from edge_agent.ledger.database import Connection
from edge_agent.ledger.sql import statement
from edge_agent.provisioning import firmware, twin
from edge_agent.provisioning.images import ImageStore
from edge_agent.provisioning.twin import Configured


class KnownDevices:
    """The devices of the ledger; one that is added while the agent runs is found on its first message."""

    def __init__(self, connection: Connection, image_store: ImageStore) -> None:
        self._connection, self._image_store = connection, image_store
        self._names: frozenset[str] = frozenset()

    def __contains__(self, device: object) -> bool:
        if device in self._names:
            return True
        found = self._connection.execute(statement("device_known"), (device,)).fetchone() is not None
        if found:
            self._names |= {str(device)}
        return found

    def refresh(self) -> None:
        """Read the whole list, so that a removed device is forgotten."""
        self._names = frozenset(row[0] for row in self._connection.execute(statement("devices")))

    def configs(self) -> list[Configured]:
        """The configuration of every device of the twin."""
        return twin.configs(self._connection)

    def offers(self, device: str | None = None) -> list[Configured]:
        """Which firmware devices are to run, or one of them."""
        return firmware.offers(self._connection, self._image_store, device)
