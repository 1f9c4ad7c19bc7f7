"""The policy as data: filters, names, and every row of the topic table."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_config.policy import SERVICE_USER, Action, Side, filters, grants, matches, may, may_ask, overlap
from tests.broker_config.clients import all_topics, users
from wire_protocol.topics import TOPICS

LEVELS = st.sampled_from(["a", "b", "", "$s"])
TOPIC = st.lists(LEVELS, min_size=1, max_size=4).map("/".join)
FILTER = st.tuples(st.lists(st.one_of(LEVELS, st.just("+")), min_size=1, max_size=4), st.sampled_from([[], ["#"]])).map(
    lambda parts: "/".join([*parts[0], *parts[1]])
)


@pytest.mark.parametrize(
    ("pattern", "topic", "matched"),
    [
        ("a/+/c", "a/b/c", True),
        ("a/+/c", "a/b/d", False),
        ("a/+", "a/b/c", False),
        ("a/+", "a", False),
        ("a/+", "a/", True),
        ("a/#", "a/b/c", True),
        ("a/#", "a", True),
        ("#", "a/b", True),
        ("#", "$SYS/a", False),
        ("+/a", "$SYS/a", False),
        ("a", "a/b", False),
        ("a/+", "a/+", False),
        ("a/#", "a/#", False),
    ],
)
def test_filters_select_as_the_standard_says(pattern: str, topic: str, *, matched: bool) -> None:
    """MQTT 3.1.1, section 4.7; and a topic with a wildcard in it is no topic."""
    assert matches(pattern, topic) is matched


@given(FILTER, FILTER, TOPIC)
def test_what_two_filters_select_makes_them_overlap(one: str, other: str, topic: str) -> None:
    """A subscription that could deliver something must never be refused."""
    assert overlap(one, other) == overlap(other, one)
    if matches(one, topic) and matches(other, topic):
        assert overlap(one, other)


def test_every_row_of_the_table_is_granted_to_its_two_roles_on_one_broker() -> None:
    """A topic that is added to the table needs no change here, and none is forgotten."""
    granted = [(grant.rule, grant.action, grant.role) for side in Side for grant in grants(side)]
    wanted = [(rule, Action.PUBLISH, rule.publisher) for rule in TOPICS]
    wanted += [(rule, Action.SUBSCRIBE, rule.subscriber) for rule in TOPICS]
    assert sorted(granted, key=str) == sorted(wanted, key=str)
    assert not any("#" in grant.pattern or "{shard}" in grant.pattern for side in Side for grant in grants(side))


@pytest.mark.parametrize("side", Side)
def test_each_topic_is_for_its_two_users_only(side: Side) -> None:
    """The same matrix as on the real brokers, decided by the policy itself."""
    for topic in all_topics(side):
        for user in users(side):
            assert may(side, user, Action.PUBLISH, topic.name) is (user == topic.publisher)
            assert may(side, user, Action.SUBSCRIBE, topic.name) is (user == topic.subscriber)
            assert may_ask(side, user, topic.name) is (user == topic.subscriber)


@pytest.mark.parametrize("user", ["+", "#", "", "gw-a/up", "a b", "+/+", "../gw-a", "x" * 65, "gw-a\n"])
def test_a_name_that_is_none_owns_nothing(user: str) -> None:
    """With `+` for a name, a client would own everybody's topics."""
    for side in Side:
        assert filters(side, user, Action.PUBLISH) == filters(side, user, Action.SUBSCRIBE) == ()


def test_the_service_account_of_one_broker_is_an_ordinary_name_on_the_other() -> None:
    """A device called "ingest" is odd, but must not see what the agent sees."""
    for side, other in ((Side.CLOUD, Side.GATEWAY), (Side.GATEWAY, Side.CLOUD)):
        stranger = SERVICE_USER[other]
        assert not any("+" in granted.split("/")[3] for granted in filters(side, stranger, Action.SUBSCRIBE))
