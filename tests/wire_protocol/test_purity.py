"""wire_protocol is pure: what would be broken is the simulator, the property tests, and every embedding of it."""

import subprocess
import sys

FORBIDDEN = {
    "aiomqtt",
    "asyncio",
    "http",
    "paho",
    "psycopg",
    "random",
    "secrets",
    "selectors",
    "socket",
    "sqlite3",
    "sqlite_utils",
    "ssl",
    "structlog",
    "subprocess",
    "threading",
    "typer",
    "urllib.request",
}

PROGRAM = """
import sys, json, zlib, hashlib, re, pydantic, pydantic.json_schema
pydantic.create_model("Warm", text=(str, pydantic.Field(pattern="a")))
before = set(sys.modules)
import importlib, pkgutil, wire_protocol
for module in pkgutil.walk_packages(wire_protocol.__path__, "wire_protocol."):
    importlib.import_module(module.name)
print("\\n".join(set(sys.modules) - before))
"""


def test_importing_every_module_imports_no_io_module() -> None:
    """A stray import of a socket, a database or a random source would make the protocol impure without a sound."""
    shown = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    imported = set(shown.stdout.split())
    assert {"wire_protocol.frames", "wire_protocol.replication", "wire_protocol.stock"} <= imported
    assert not imported & FORBIDDEN
