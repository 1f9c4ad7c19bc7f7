"""Real servers for tests and benchmarks: a shared TimescaleDB and Mosquitto, and private ones that may be killed.

`python -m testbed.services up` starts the shared pair. `PrivateDatabase` and `PrivateBroker` start servers that the
caller owns, to be stopped, killed and restarted at will.

Invariant: nothing here is imported by the product.
"""

from testbed.services.broker import PrivateBroker
from testbed.services.database import PrivateDatabase
from testbed.services.errors import NotInstalled, NotRunning, ServerFailed, ServicesError
from testbed.services.shared import database_url, mqtt_url

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
