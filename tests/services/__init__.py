"""Real servers for tests and benchmarks: a shared TimescaleDB and Mosquitto, and private ones that may be killed.

`python -m tests.services up` starts the shared pair. `PrivateDatabase` and `PrivateBroker` start servers that the
caller owns, to be stopped, killed and restarted at will.

Invariant: nothing here is imported by the product.
"""

from tests.services.broker import PrivateBroker
from tests.services.database import PrivateDatabase
from tests.services.errors import NotInstalled, NotRunning, ServerFailed, ServicesError
from tests.services.shared import database_url, mqtt_url

__all__ = [
    "NotInstalled",
    "NotRunning",
    "PrivateBroker",
    "PrivateDatabase",
    "ServerFailed",
    "ServicesError",
    "database_url",
    "mqtt_url",
]
