"""`python -m testbed.services up|down|status|env|run -- COMMAND`: the test servers from the command line."""

import argparse
import sys

from testbed.services import shared
from testbed.services.errors import ServicesError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m testbed.services", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("up", help="start the servers and leave them running")
    actions.add_parser("down", help="stop them and remove their data")
    actions.add_parser("status", help="say where they are; exit 1 when they are not up")
    actions.add_parser("env", help="print the shell variables that name them")
    with_servers = actions.add_parser("run", help="run a command with the servers up")
    with_servers.add_argument(
        "--in-memory", action="store_true", help="where it can be, keep all data in memory: for tests"
    )
    with_servers.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    try:
        if arguments.action == "run":
            return shared.run([word for word in arguments.command if word != "--"], in_memory=arguments.in_memory)
        return _act(arguments.action)
    except ServicesError as error:
        print(error, file=sys.stderr)  # noqa: T201 - the command's answer
        return 1


def _act(action: str) -> int:
    if action == "down":
        shared.down()
        return 0
    if action == "up":
        shared.up()
    prefix = "export " if action == "env" else ""
    print(f"{prefix}{shared.DATABASE_VARIABLE}={shared.database_url()}")  # noqa: T201 - the command's answer
    print(f"{prefix}{shared.MQTT_VARIABLE}={shared.mqtt_url()}")  # noqa: T201 - the command's answer
    return 0


if __name__ == "__main__":
    sys.exit(main())
