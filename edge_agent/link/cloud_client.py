"""aiomqtt's client, which notices more here than it does by itself.

Invariant: it decides nothing; what a lost link or a refused publish means is the uplink's to say.
"""

from typing import Any, Final

import aiomqtt
import structlog
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

TAKEN_OVER: Final = 0x8E  # why the broker ends us when somebody connects under our client id (MQTT 5, 3.14.2.1)

log = structlog.get_logger("edge_agent.link.uplink")


class CloudClient(aiomqtt.Client):
    """Notices what aiomqtt passes over.

    A PUBACK with a reason code of 0x80 or above is a failed publish; and a connection that the broker closes before it
    has answered to CONNECT, as one that starts or a proxy before it does, is not waited for until the timeout.
    """

    taken_over = False

    def _on_disconnect(
        self, client: Any, userdata: Any, flags: Any, reason_code: ReasonCode, properties: Properties | None = None
    ) -> None:
        self.taken_over = reason_code.value == TAKEN_OVER
        if not self._connected.done():
            self._connected.set_exception(aiomqtt.MqttError("the broker closed the connection without an answer"))
        super()._on_disconnect(client, userdata, flags, reason_code, properties)

    def _on_publish(
        self, client: Any, userdata: Any, mid: int, reason_code: ReasonCode, properties: Properties
    ) -> None:
        if reason_code.is_failure:
            # Nothing else to do: the frame stays unacknowledged, so its sender sends it again.
            log.warning("publish_refused", reason=str(reason_code))
        super()._on_publish(client, userdata, mid, reason_code, properties)
