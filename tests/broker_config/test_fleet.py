"""The rendered files of a fleet's brokers: their shape, who can read them, and the command that writes them."""

import json
import os
import re
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from broker_config import fleet, others
from broker_config.cli.app import app
from broker_config.errors import InvalidConfig
from broker_config.fleet import FleetConfig
from broker_config.mosquitto import TlsFiles
from broker_config.policy import Action, Side, may
from tests.broker_config.clients import all_topics

TLS = TlsFiles(cafile=Path("/c/ca.pem"), certfile=Path("/c/server.pem"), keyfile=Path("/c/server.key"))
CONFIG = FleetConfig(directory=Path("/b"), tls=TLS, crlfile=Path("/c/crl.pem"), bridge_password="correct-horse")


def test_strangers_never_share_a_process_with_gateways() -> None:
    """Client ids are one space in a broker: a stranger could end any gateway's connection."""
    files = fleet.render_fleet(CONFIG)
    cloud, claims = files[fleet.CLOUD / fleet.CONF], files[fleet.CLAIMS / fleet.CONF]
    assert "allow_anonymous true" not in cloud
    assert cloud.count("allow_anonymous false") == cloud.count("\nlistener ") == 2
    assert "use_username_as_clientid true" in cloud
    assert claims.count("\nlistener ") == 1
    for conf in (cloud, claims):
        listeners = [part for part in conf.split("\nlistener ")[1:] if part.startswith("888")]
        assert all("tls_version tlsv1.2" in part for part in listeners)
    acls = [text for name, text in files.items() if name.name.startswith("acl")]
    assert len(acls) == 3
    assert not any("#" in line for text in acls for line in text.splitlines() if not line.startswith("# "))


def test_the_same_policy_for_emqx() -> None:
    """Each topic of the table is granted to the one who may, by the certificate's name; the end is a denial."""
    files = others.render_emqx(CONFIG)
    acl, conf = files[others.EMQX_ACL], files[others.EMQX_CONF]
    rules = [line for line in acl.splitlines() if not line.startswith("%%")]
    assert rules[-1] == "{deny, all}."
    shape = re.compile(r'\{allow, (all|\{username, "ingest"\}), (publish|subscribe), \[("[^"#]+"(, )?)+\]\}\.')
    assert all(shape.fullmatch(rule) for rule in rules[:-1])
    assert '"stocktide/v1/+/${username}/up/ledger"' in acl
    assert "claim" not in next(rule for rule in rules if rule.startswith("{allow, all, publish"))
    for wanted in (
        "peer_cert_as_username = cn",
        "peer_cert_as_clientid = cn",
        "verify = verify_peer",
        "fail_if_no_peer_cert = true",
        "no_match = deny",
    ):
        assert wanted in conf
    assert conf.count("{") == conf.count("}")


@pytest.mark.parametrize("user", ["gw-a", "gw-b", "ingest"])
def test_the_same_policy_for_rabbitmq(user: str) -> None:
    """RabbitMQ's regular expressions, tried on every topic, say what the policy says."""
    files = others.render_rabbitmq(CONFIG, ["gw-a", "gw-b"])
    definitions = json.loads(files[others.RABBITMQ_DEFINITIONS])
    assert {entry["name"] for entry in definitions["users"]} == {"ingest", "gw-a", "gw-b"}
    mine = next(entry for entry in definitions["topic_permissions"] if entry["user"] == user)
    for topic in all_topics(Side.CLOUD):
        for action, field in ((Action.PUBLISH, "write"), (Action.SUBSCRIBE, "read")):
            # RabbitMQ puts the user's name in the place of {username}, and searches.
            found = re.search(mine[field].replace("{username}", user), topic.name.replace("/", ".")) is not None
            assert found == may(Side.CLOUD, user, action, topic.name), (user, field, topic.name)
    assert "mqtt.ssl_cert_login = true" in files[others.RABBITMQ_CONF]


def test_the_command_writes_everything_and_no_secret_where_others_can_read(tmp_path: Path) -> None:
    """One command makes what the two brokers start from; the bridge's password is for the broker's eyes."""
    out = tmp_path / "brokers"
    command = [
        "fleet",
        "--out",
        str(out),
        "--cafile",
        "/c/ca.pem",
        "--certfile",
        "/c/s.pem",
        "--keyfile",
        "/c/s.key",
        "--crlfile",
        "/c/crl.pem",
        "--rabbitmq-gateway",
        "gw-a",
        "--json",
    ]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.output
    password = re.search(r"remote_password (\S+)", (out / "claims" / "mosquitto.conf").read_text())
    assert password is not None
    assert password[1] not in first.output
    for file in out.rglob("*"):
        if file.is_file():
            is_open = stat.S_IMODE(file.stat().st_mode) & 0o077
            assert not (is_open and password[1].encode() in file.read_bytes()), file
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    # Again: the password is kept, so that a running broker's password file still fits.
    assert CliRunner().invoke(app, command).exit_code == 0
    assert password[0] in (out / "claims" / "mosquitto.conf").read_text()
    assert {"ingest", "claims"} <= {line.split(":")[0] for line in (out / "cloud" / "passwords").read_text().split()}


@pytest.mark.parametrize("where", ["address", "worker_address", "directory", "crlfile", "bridge_password", "cafile"])
def test_no_value_can_become_a_line_of_any_broker_s_configuration(where: str) -> None:
    """Mosquitto's two files, EMQX's and RabbitMQ's; of EMQX neither the end of a quotation."""
    evil = "/x-123456789\nallow_anonymous true"
    values: dict[str, object] = {where: evil if "address" in where or "password" in where else Path(evil)}
    tls = TLS.model_copy(update={"cafile": values.pop("cafile")}) if where == "cafile" else TLS
    with pytest.raises(InvalidConfig):
        fleet.render_fleet(CONFIG.model_copy(update={**values, "tls": tls}))
    if where in {"address", "worker_address", "cafile"}:
        config = CONFIG.model_copy(update={**values, "tls": tls})
        for render in (others.render_emqx, lambda config: others.render_rabbitmq(config, [])):
            with pytest.raises(InvalidConfig):
                render(config)
        quoted = dict.fromkeys(values, '1.2.3.4" }') if where != "cafile" else {}
        if quoted:
            with pytest.raises(InvalidConfig):
                others.render_emqx(CONFIG.model_copy(update=quoted))


def test_the_claims_broker_keeps_nothing_that_a_claimant_leaves_behind() -> None:
    """A thousand client ids with a retained message each were a hundred megabytes, here and in the cloud's broker."""
    claims = fleet.render_fleet(CONFIG)[fleet.CLAIMS / fleet.CONF]
    for line in ("retain_available false", "bridge_outgoing_retain false", "persistent_client_expiration 1h"):
        assert f"\n{line}\n" in claims
    assert "retain_available" not in fleet.render_fleet(CONFIG)[fleet.CLOUD / fleet.CONF]


def test_folders_and_files_are_closed_whatever_the_umask_is(tmp_path: Path) -> None:
    """A service's umask of 0 made them everybody's to write in."""
    before = os.umask(0)
    try:
        out = tmp_path / "made" / "brokers"
        made = CliRunner().invoke(app, ["render", "--out", str(out), "--json"])
        assert made.exit_code == 0, made.output
    finally:
        os.umask(before)
    for each in (out.parent, out, *out.iterdir()):
        assert stat.S_IMODE(each.stat().st_mode) & 0o027 == 0, each
