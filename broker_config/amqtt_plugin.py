"""The topic policy as an amqtt plugin: who may connect, publish, subscribe and be given what.

Invariant: a message is checked when it is published and again for each client it would be delivered to.
"""

from dataclasses import dataclass, field

from amqtt.contexts import Action as AmqttAction
from amqtt.contexts import BaseContext
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin
from amqtt.session import Session

from broker_config import passwords
from broker_config.policy import Action, Side, may, may_ask


class PolicyPlugin(BaseAuthPlugin, BaseTopicPlugin):
    """amqtt makes it from its dotted name and the fields of `Config`."""

    @dataclass
    class Config:
        """`users` are names with hashes as in a password file; None lets everybody in and do everything."""

        side: str = Side.CLOUD.value
        users: dict[str, str] | None = field(default=None)

    def __init__(self, context: BaseContext) -> None:
        super().__init__(context)
        settings: PolicyPlugin.Config = self.config
        self._side = Side(settings.side)
        self._users = settings.users

    async def authenticate(self, *, session: Session) -> bool:
        """Whether a client may connect: its password fits, and so does its last will."""
        if self._users is None:
            return True
        stored = self._users.get(session.username or "", "")
        if not passwords.verify(session.password or "", stored):
            return False
        # amqtt publishes a last will without asking again.
        return session.will_topic is None or self._may(session, Action.PUBLISH, session.will_topic)

    async def topic_filtering(
        self, *, session: Session | None = None, topic: str | None = None, action: AmqttAction | None = None
    ) -> bool:
        """Whether a client may publish on or receive from a topic, or subscribe to a filter."""
        if self._users is None:
            return True
        if session is None or topic is None:
            return False
        if action is AmqttAction.SUBSCRIBE:
            return may_ask(self._side, session.username or "", topic)
        return self._may(session, Action.PUBLISH if action is AmqttAction.PUBLISH else Action.SUBSCRIBE, topic)

    def _may(self, session: Session, action: Action, topic: str) -> bool:
        return may(self._side, session.username or "", action, topic)
