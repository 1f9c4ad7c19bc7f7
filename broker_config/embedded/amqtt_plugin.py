"""The topic policy as an amqtt plugin: who may publish, subscribe and be given what.

Invariant: a message is checked when it is published and again for each client it would be delivered to.
"""

from dataclasses import dataclass

from amqtt.contexts import Action as AmqttAction
from amqtt.contexts import BaseContext
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin
from amqtt.session import Session

from broker_config.embedded.listeners import Admitted
from broker_config.policy import Action, Side, may, may_ask


class PolicyPlugin(BaseAuthPlugin, BaseTopicPlugin):
    """amqtt makes it from its dotted name and the fields of `Config`. User names are `Admitted.text`."""

    @dataclass
    class Config:
        """Whose broker it is."""

        side: str = Side.CLOUD.value

    def __init__(self, context: BaseContext) -> None:
        super().__init__(context)
        settings: PolicyPlugin.Config = self.config
        self._side = Side(settings.side)

    async def authenticate(self, *, session: Session) -> bool:
        """Whether a client may connect: everybody comes through a door, which has judged that already."""
        return bool(session.username)

    async def topic_filtering(
        self, *, session: Session | None = None, topic: str | None = None, action: AmqttAction | None = None
    ) -> bool:
        """Whether a client may publish on or receive from a topic, or subscribe to a filter."""
        if session is None or topic is None or not session.username:
            return False
        who = Admitted.parse(session.username, session.client_id or "")
        if who.roles is None:
            return True
        if action is AmqttAction.SUBSCRIBE:
            return may_ask(self._side, who.user, topic, who.roles)
        wanted = Action.PUBLISH if action is AmqttAction.PUBLISH else Action.SUBSCRIBE
        return may(self._side, who.user, wanted, topic, who.roles)
