"""The product's imports are import contracts; these are the tests that keep a plain aiomqtt client, and why."""

import ast
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PLAIN: Final = {
    # They test brokers, which have to stand any client; the wrapper would turn what it refuses into its own errors.
    "tests/broker_config/clients.py",
    "tests/broker_config/matrix.py",
    "tests/broker_config/test_cli.py",
    "tests/broker_config/test_embedded.py",
    "tests/broker_config/test_embedded_fleet.py",
    "tests/broker_config/test_mosquitto.py",
    "tests/broker_config/test_role_matrix.py",
    "testbed/brokers.py",  # its clients are those tests', and the witness of the next one
    "tests/enrolment/test_enrolment.py",
    "tests/enrolment/test_revocation.py",
    # They look behind the wrapper.
    "tests/mqtt_client/test_silence.py",
}


def imports_aiomqtt(path: Path) -> bool:
    """Whether a module imports aiomqtt anywhere."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if any(name.partition(".")[0] == "aiomqtt" for name in names):
            return True
    return False


def test_no_other_test_opens_a_client_of_its_own() -> None:
    """A copy of the wrapper's mends comes about one client at a time."""
    paths = [path for folder in ("tests", "testbed", "bench", "fuzz") for path in (ROOT / folder).rglob("*.py")]
    assert {str(path.relative_to(ROOT)) for path in paths if imports_aiomqtt(path)} == PLAIN
