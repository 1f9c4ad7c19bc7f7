"""What is killed, or done twice at once, in the tests of files; and ledgers as older versions have left them."""

import hashlib
import json
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from sqlite_utils import Database

from cloud_identity import certificates
from cloud_identity.authority import Authority, KeyFileSigner, SigningRequest
from edge_agent import restore as restoring
from edge_agent.errors import LedgerExists
from edge_agent.identity.keystore import Identity, IdentityFolder, Pending
from edge_agent.ledger import database
from edge_agent.ledger.clock import SystemClock
from edge_agent.ledger.drafts import Stamp, draft
from edge_agent.ledger.ledger import Ledger
from edge_agent.ledger.schema import ledger_migrations
from edge_agent.ledger.sql import script
from edge_agent.settings import EdgeSettings
from edge_agent.upkeep.backup import backup
from wire_protocol import clock as hlc_clock
from wire_protocol import frames
from wire_protocol.topics import STREAMS

ALREADY_THERE = 17
BOOT = "01HF7YAT00" + "0" * 16
EPOCH = "01HF7YAT00" + "1" * 16
DEVICES = ("till-1", "till-2")


def make_ledger(path: Path) -> None:
    """As `edge init`."""
    try:
        with Ledger.create(path, "gw-1", SystemClock(), devices=DEVICES):
            pass
    except LedgerExists:
        raise SystemExit(ALREADY_THERE) from None


def make_ledger_or_fail(path: Path) -> None:
    """The same, with the error that it meets."""
    with Ledger.create(path, "gw-1", SystemClock()):
        pass


def older_and_migrated(path: Path) -> None:
    """A ledger with some stock."""
    older_ledger(path)
    migrate(path)


def migrate(path: Path) -> None:
    """As any command that writes, on a ledger of an older version."""
    with closing(database.open_writer(path)):
        pass


def copy(path: Path) -> None:
    """As `edge backup`."""
    backup(path, path.with_name("copy.db"))


def restore(path: Path, *, aside: bool = False) -> None:
    """As `edge restore`, from the cloud whose address is in the file beside; looking more often whether it is done."""
    restoring.LOOK_S = 0.01  # type: ignore[misc]
    settings = EdgeSettings(ledger=path)
    url = path.with_name("url").read_text()
    restoring.restore(path, "gw-1", url, settings, wait_s=30, progress=lambda *_: None, aside=aside)


def restore_aside(path: Path) -> None:
    """As `edge restore --set-aside`."""
    restore(path, aside=True)


Requested = tuple[IdentityFolder, Pending]


def enrol(path: Path) -> Identity:
    """A key and its certificate, from the authority in the folder beside."""
    return answer(path, request(path))


def request(path: Path) -> Requested:
    """A key that waits for its certificate."""
    home = IdentityFolder(path)
    return home, home.pending("gw-1")


def answer(path: Path, requested: Requested) -> Identity:
    """Its certificate, from the authority in the folder beside."""
    home, pending = requested
    signer = KeyFileSigner(path.with_name("ca"))
    made = signer.sign(SigningRequest.of(pending.csr_pem, "gw-1", 90))
    return home.install(
        pending,
        gateway="gw-1",
        certificate_pem=certificates.pem([made]),
        ca_pem=certificates.pem(signer.bundle()),
        brokers=("mqtts://b",),
        claim="c1a1m000",
    )


def make_authority(path: Path) -> Authority:
    """The authority's folder."""
    return Authority.create(path, "Test")


def older_ledger(path: Path, *, version: int = 1, entries: int = 20) -> None:
    """A ledger as a program of that schema version has left it, which did not state its version."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA application_id = {database.APPLICATION_ID}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("BEGIN")
        db = Database(connection)
        names = [migration.name for migration in ledger_migrations.pending(db)]
        ledger_migrations.apply(db, stop_before=names[1:2])
        _fill(connection, entries)
        ledger_migrations.apply(db, stop_before=names[version : version + 1])
        connection.execute("COMMIT")


def half_made(path: Path, version: int, statements: int) -> None:
    """A ledger of an older program that was killed while it made a version, without a transaction."""
    older_ledger(path, version=version - 1)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for text in script(f"schema_{version:03}")[:statements]:
            connection.execute(text)


def _fill(connection: sqlite3.Connection, entries: int) -> None:
    """Receipts of one piece each, with everything that version 1 derives of them."""
    connection.executemany("INSERT INTO meta VALUES (?, ?)", [("gateway", "gw-1"), ("epoch", EPOCH)])
    connection.executemany(
        "INSERT INTO stream (name, sealed_digest) VALUES (?, ?)",
        [(stream, frames.genesis("gw-1", EPOCH, stream)) for stream in STREAMS],
    )
    start_ms, last = 1_700_000_000_000, (0, b"")
    template = json.loads(
        draft("receive", "tea", 1, destination="A-01", device="till-1", event="e").entry(Stamp(1, BOOT, 1)).body()
    )

    def rows() -> Iterable[tuple[int, int, str, bytes]]:
        nonlocal last
        digest = b""
        for seq in range(1, entries + 1):
            hlc = hlc_clock.pack(start_ms + seq)
            body = json.dumps(template | {"event": f"e-{seq}", "hlc": hlc}, separators=(",", ":"))
            digest = hashlib.blake2b(digest + body.encode(), digest_size=16).digest()
            last = (hlc, digest)
            yield seq, hlc, body, digest

    connection.executemany("INSERT INTO entry (seq, hlc, body, digest) VALUES (?, ?, ?, ?)", rows())
    connection.execute(
        "INSERT INTO movement SELECT seq, hlc, 'receive', 'tea', '', 1, '@supplier', 'A-01', NULL FROM entry"
    )
    connection.execute("INSERT INTO seen SELECT 'till-1', 'e-' || seq, seq FROM entry")
    connection.executemany(
        "INSERT INTO balance VALUES (?, 'tea', '', ?, ?, NULL, NULL, ?, ?)",
        [("A-01", entries, entries, last[0], entries), ("@supplier", -entries, -entries, last[0], entries)],
    )
