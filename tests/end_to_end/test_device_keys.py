"""A device's key, from the operator's command to the gateway's own Mosquitto, and out again."""

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from broker_config import passwords
from broker_config.mosquitto import CONFIG_FILE, PASSWORD_FILE, Auth, MosquittoConfig, render
from broker_config.policy import Side
from cloud_cli.app import app as cloud
from edge_agent.ledger import database
from edge_agent.ledger.sql import statement
from mqtt_client import ConnectionLost, ConnectionOptions
from mqtt_client import connect as mqtt_connect
from testbed.eventually import eventually_async
from testbed.services import PrivateBroker
from tests.end_to_end.sites import SETTLE_S, SiteStack
from wire_protocol import names
from wire_protocol.address import BrokerAddress

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
SECRET = "correct-horse-battery"


def rendered(port: int, directory: Path) -> str:
    """A gateway's broker with passwords, as `stocktide broker render` makes it; only the agent has one yet."""
    files = render(MosquittoConfig(side=Side.GATEWAY, auth=Auth.PASSWORD, directory=directory, port=port))
    for name, text in files.items():
        (directory / name).write_text(text)
    passwords.write(directory / PASSWORD_FILE, {names.AGENT_USER: passwords.hashed(SECRET)})
    return files[CONFIG_FILE]


def run(site: SiteStack, *arguments: str) -> dict[str, str]:
    """Run a command of `stocktide cloud` and return its JSON."""
    done = CliRunner().invoke(cloud, [*arguments, "--database-url", site.database_url, "--json"])
    assert done.exit_code == 0, done.output
    answer: dict[str, str] = json.loads(done.stdout)
    return answer


async def admitted(broker: PrivateBroker, password: str) -> bool:
    """Whether the broker lets the device in."""
    try:
        address = BrokerAddress("127.0.0.1", broker.port, user="fridge-1", password=password)
        async with mqtt_connect(ConnectionOptions(address=address, client_id="fridge-1", mqtt_5=False)):
            return True
    except ConnectionLost:
        return False


async def until_admitted(broker: PrivateBroker, password: str, *, wanted: bool) -> None:
    """Wait until the broker lets the device in, or does not any more."""

    async def is_as_wanted() -> bool:
        return await admitted(broker, password) is wanted

    await eventually_async(is_as_wanted, f"admitted: {wanted}", within_s=SETTLE_S)


async def test_a_key_lets_a_device_in_and_taking_it_away_keeps_it_out(
    site: SiteStack, private_broker: Callable[..., PrivateBroker]
) -> None:
    """Nobody at the gateway types a password, and the agent's own survives it all, a restart included."""
    post = site.make()
    post.agent.stop()
    broker = private_broker(rendered)
    with closing(database.open_writer(post.agent.ledger)) as connection, database.transaction(connection):
        url = f"mqtt://{names.AGENT_USER}:{SECRET}@127.0.0.1:{broker.port}"
        connection.execute(statement("set_meta"), ("local_url", url))
    post.agent.environment |= {
        "STOCKTIDE_EDGE_DEVICE_PASSWORD_FILE": str(broker.data / PASSWORD_FILE),
        "STOCKTIDE_EDGE_BROKER_RELOAD_COMMAND": f"kill -HUP {broker.pid}",
    }
    post.agent.start()
    refused = CliRunner().invoke(
        cloud, ["device", "key", "fridge-1", "--gateway", post.name, "--database-url", site.database_url]
    )
    assert refused.exit_code != 0
    assert "stocktide cloud twin set" in refused.output, "the device is not in the twin yet, and the hint says how"
    run(site, "twin", "set", post.name, "--patch", '{"devices": {"fridge-1": {"kind": "probe"}}}')
    first = run(site, "device", "key", "fridge-1", "--gateway", post.name)["key"]
    await until_admitted(broker, first, wanted=True)
    second = run(site, "device", "key", "fridge-1", "--gateway", post.name)["key"]
    await until_admitted(broker, second, wanted=True)
    assert not await admitted(broker, first)
    # The twin loses the device while the gateway is off: it catches up when it starts.
    post.agent.kill()
    run(site, "twin", "set", post.name, "--patch", '{"devices": {"fridge-1": null}}')
    post.agent.start()
    await until_admitted(broker, second, wanted=False)
    assert names.AGENT_USER in passwords.read(broker.data / PASSWORD_FILE)
