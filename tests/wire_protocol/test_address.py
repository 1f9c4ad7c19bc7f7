"""Broker addresses: what is taken means what it says, and what is not says why. Broken: a password in clear."""

import pytest

from wire_protocol.address import BrokerAddress, InvalidAddress

TAKEN = {
    "mqtt://h": BrokerAddress("h", 1883),
    "mqtts://h": BrokerAddress("h", 8883, tls=True),
    "MQTTS://Broker.example": BrokerAddress("Broker.example", 8883, tls=True),
    "mqtt://h:1": BrokerAddress("h", 1),
    "mqtt://h:65535/": BrokerAddress("h", 65_535),
    "mqtts://kim@h": BrokerAddress("h", 8883, tls=True, user="kim"),
    "mqtts://kim:@h": BrokerAddress("h", 8883, tls=True, user="kim", password=""),
    "mqtts://kim:a:b@h": BrokerAddress("h", 8883, tls=True, user="kim", password="a:b"),
    "mqtts://k%40im:12%23x%2F%25@h:99": BrokerAddress("h", 99, tls=True, user="k@im", password="12#x/%"),
    "mqtt://127.0.0.1:1883": BrokerAddress("127.0.0.1", 1883),
    "mqtt://[::1]:1884": BrokerAddress("::1", 1884),
    "mqtts://[fe80::1%eth0]": BrokerAddress("fe80::1%eth0", 8883, tls=True),
    "mqtt://my_broker-1.local": BrokerAddress("my_broker-1.local", 1883),
    "mqtts://kim:pä%20ss@h": BrokerAddress("h", 8883, tls=True, user="kim", password="pä ss"),
}
REFUSED = {
    "ssl://h:8883": "TLS is mqtts",
    "tls://h": "TLS is mqtts",
    "http://h:80": "plain TCP is mqtt",
    "https://h:443": "TLS is mqtts",
    "mqtt+ssl://h:8883": "TLS is mqtts",
    "ws://h:80": "plain TCP is mqtt",
    "tcp://h:1883": "plain TCP is mqtt",
    "h:1883": "does not begin with",
    "h": "does not begin with",
    "": "does not begin with",
    "mqtt:/h": "does not begin with",
    "mqtt://": "no host",
    "mqtt:///": "no host",
    "mqtt://:1883": "no host",
    "mqtt://kim:pw@": "no host",
    "mqtt://h:0": "a port is",
    "mqtt://h:65536": "a port is",
    "mqtt://h:99999": "a port is",
    "mqtt://h:": "no host",
    "mqtt://h:port": "no host",
    "mqtt://h:-1": "no host",
    "mqtt://h:1883:1884": "no host",
    "mqtt://h/topic": "no path",
    "mqtts://kim:a/b@h": "no path",
    "mqtt://h?tls=1": "'?'",
    "mqtt://h#x": "'#'",
    "mqtt://user:12#x@h": "%23",
    "mqtt://user:1?x@h": "%3F",
    "mqtt://user:a@b@h": "%40",
    "mqtt://user:1%x@h": "%25",
    "mqtt://user:1%0g@h": "%25",
    "mqtt://user:%ff@h": "UTF-8",
    "mqtt://user:%00@h": "NUL",
    "mqtt://@h": "without a user",
    "mqtt://:pw@h": "without a user",
    " mqtt://h": "not known",
    "mqtt://h ": "' '",
    "mqtt://a b@h": "%20",
    "mqtt://h\n": "'\\n'",
    "mqtt://h\u200b": "u200b",
    "mqtt://h\\x": "%5C",
    "mqtt://[::1": "no host",
    "mqtt://[::g]": "no host",
    "mqtt://[1:2]": "no IPv6",
    "mqtt://::1": "no host",
    "mqtt://h,other": "no host",
    "mqtt://ha$ho": "no host",
}


@pytest.mark.parametrize("url", TAKEN)
def test_what_is_taken_means_what_it_says(url: str) -> None:
    """Users and passwords with anything in them, percent-encoded."""
    found = BrokerAddress.parse(url)
    assert found == TAKEN[url]
    assert found.password is None or not found.password or found.password not in repr(found)


@pytest.mark.parametrize("url", REFUSED)
def test_what_is_refused_says_why(url: str) -> None:
    """In one line, with what to write instead, and without a password."""
    with pytest.raises(InvalidAddress) as refused:
        BrokerAddress.parse(url)
    said = str(refused.value)
    assert REFUSED[url] in said
    assert said.isprintable()
    assert "mqtts://" in str(refused.value.hint)
    for secret in ("12#x", "1?x", "a@b", "1%x", "pw"):
        assert f":{secret}" not in said


@pytest.mark.parametrize("url", ["mqtt://kim:secret", "mqtt://kim:secret/word@h", "ssl://kim:secret@h", "kim:secret@h"])
def test_no_error_shows_what_may_be_a_password(url: str) -> None:
    """A forgotten host, or a character that was not encoded, must not put it on a screen or in a log."""
    with pytest.raises(InvalidAddress) as refused:
        BrokerAddress.parse(url)
    assert "secret" not in str(refused.value)
