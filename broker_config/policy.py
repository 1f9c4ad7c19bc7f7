"""Who may publish and subscribe where, expanded from the topic table into grants that brokers can be given.

Two brokers exist: the cloud's, which gateways and workers share, and each gateway's own, which its devices and its
agent share. On both, an owner (a gateway, a claimant, a device) is confined to topics with its own user name in them,
and one service account sees all.

Invariant: a grant's filter is a row of `TOPICS` with the owner's placeholder kept and the others widened to `+`; it
never ends in `#`.
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from wire_protocol import names
from wire_protocol.errors import InvalidName
from wire_protocol.topics import TOPICS, Role, TopicRule

OWNER: Final = "{owner}"


class Side(StrEnum):
    """Which of the two brokers."""

    CLOUD = "cloud"
    GATEWAY = "gateway"


class Action(StrEnum):
    """What a client does with a topic."""

    PUBLISH = "publish"
    SUBSCRIBE = "subscribe"


ROLES: Final[dict[Side, tuple[Role, ...]]] = {
    Side.CLOUD: (Role.GATEWAY, Role.CLAIMANT, Role.INGEST),
    Side.GATEWAY: (Role.DEVICE, Role.AGENT),
}
# The user name of the one account that sees all, on each side. No gateway or device may have it.
SERVICE_USER: Final[dict[Side, str]] = {Side.CLOUD: names.INGEST_USER, Side.GATEWAY: names.AGENT_USER}
_SERVICE_ROLES: Final = frozenset({Role.INGEST, Role.AGENT})
_PLACEHOLDER: Final[dict[Role, str]] = {Role.GATEWAY: "{gateway}", Role.CLAIMANT: "{claim}", Role.DEVICE: "{device}"}
_PLACEHOLDERS: Final = ("{shard}", "{gateway}", "{claim}", "{device}")


@dataclass(frozen=True, slots=True)
class Grant:
    """One thing a role may do. `pattern` is an MQTT filter that may have `{owner}` in the place of its user name."""

    role: Role
    action: Action
    pattern: str
    rule: TopicRule

    @property
    def is_owned(self) -> bool:
        return OWNER in self.pattern

    def filter_for(self, user: str) -> str:
        """The MQTT filter for one user."""
        return self.pattern.replace(OWNER, user)


def grants(side: Side) -> tuple[Grant, ...]:
    """All grants of one broker, service account last, in the order of the topic table."""
    return tuple(
        Grant(role, action, _pattern(rule, role), rule)
        for role in ROLES[side]
        for rule in TOPICS
        for action, granted in ((Action.PUBLISH, rule.publisher), (Action.SUBSCRIBE, rule.subscriber))
        if granted is role
    )


def filters(side: Side, user: str, action: Action, roles: Collection[Role] | None = None) -> tuple[str, ...]:
    """The MQTT filters that a user of a broker is granted for an action, in some roles or in any.

    Any user is an owner of the topics with its name in them; whether there is a gateway of that name is for the
    registry to say. A name that is not well formed owns nothing, or `+` would own everything.
    """
    is_service = user == SERVICE_USER[side]
    if not is_service and not _is_name(user):
        return ()
    return tuple(
        grant.filter_for(user)
        for grant in grants(side)
        if grant.action is action
        and (grant.role in _SERVICE_ROLES) == is_service
        and (roles is None or grant.role in roles)
    )


def may(side: Side, user: str, action: Action, topic: str, roles: Collection[Role] | None = None) -> bool:
    """Whether a user may publish on a topic, or be given what arrives on it."""
    return any(matches(granted, topic) for granted in filters(side, user, action, roles))


def may_ask(side: Side, user: str, wanted: str, roles: Collection[Role] | None = None) -> bool:
    """Whether a subscription could ever deliver anything: what it delivers is checked again, topic by topic."""
    return any(overlap(granted, wanted) for granted in filters(side, user, Action.SUBSCRIBE, roles))


def matches(pattern: str, topic: str) -> bool:
    """Whether an MQTT filter selects a topic (MQTT 3.1.1, section 4.7)."""
    if topic.startswith("$") and pattern.startswith(("+", "#")):
        return False
    return not {"+", "#"}.intersection(topic) and overlap(pattern, topic)


def overlap(one: str, other: str) -> bool:
    """Whether there is a topic that two MQTT filters both select."""
    levels, others = one.split("/"), other.split("/")
    for level, other_level in zip(levels, others, strict=False):
        if "#" in (level, other_level):
            return True
        if level != other_level and "+" not in (level, other_level):
            return False
    # A trailing `/#` also selects the level above it.
    longer = max(levels, others, key=len)
    shorter = min(len(levels), len(others))
    return len(longer) == shorter or longer[shorter:] == ["#"]


def _pattern(rule: TopicRule, role: Role) -> str:
    pattern = rule.pattern
    if own := _PLACEHOLDER.get(role):
        pattern = pattern.replace(own, OWNER)
    for placeholder in _PLACEHOLDERS:
        pattern = pattern.replace(placeholder, "+")
    return pattern


def _is_name(user: str) -> bool:
    try:
        return bool(names.device(user))  # the widest of the three; slugs are device names too
    except InvalidName:
        return False
