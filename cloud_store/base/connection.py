"""Connections to the database, and the translation of the driver's errors into the store's.

Invariant: a connection cannot hang forever: connecting, each statement, a silent network and a silent server all have
a limit. A server whose disk hangs keeps its connections and answers nothing, so only a clock on this side can tell.
"""

import math
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, Final, Literal, TypeAlias

import psycopg
from psycopg import errors as pg
from psycopg.abc import RV, PQGen

from cloud_store.base import arrays
from cloud_store.base.errors import (
    DatabaseUnavailable,
    MergeConflict,
    NotMigrated,
    StoreError,
    StoreTimeout,
    Unstorable,
)

Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]
Role: TypeAlias = Literal["stocktide_ingest", "stocktide_api"]  # migration 0006 says what each may

CONNECT_TIMEOUT_S: Final = 5
STATEMENT_TIMEOUT_MS: Final = 30_000
NETWORK_TIMEOUT_MS: Final = 15_000
SILENCE_S_MAX: Final = 45.0  # above the limit of a statement, which a server that lives keeps by itself
LOOK_S: Final = 0.1
# In `tenant_view` are the views through which a tenant reads hypertables, under the tables' names (migration 0006). One
# plan for every filter of a question would be a bad plan for most, and a question holds one core, not all of them.
READ_ONLY_OPTIONS: Final = (
    "-c statement_timeout=10000 -c default_transaction_read_only=on -c search_path=tenant_view,public"
    " -c plan_cache_mode=force_custom_plan -c max_parallel_workers_per_gather=0"
)

# Retrying the same transaction can succeed.
_CONFLICTS: Final = (pg.DeadlockDetected, pg.SerializationFailure, pg.LockNotAvailable, pg.UniqueViolation)
# The rows cannot be stored here whatever is tried; psycopg's own refusal to write a value has no SQLSTATE.
_UNSTORABLE: Final = (
    pg.NumericValueOutOfRange,
    pg.DatetimeFieldOverflow,
    pg.CharacterNotInRepertoire,
    pg.UntranslatableCharacter,
    pg.InvalidTextRepresentation,
    pg.StringDataRightTruncation,
)
_HINT_DATABASE: Final = "Check STOCKTIDE_DATABASE_URL and that the server runs."


class _Silent(psycopg.OperationalError):
    """The server has not answered for too long."""


class ImpatientConnection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that is closed when its server says nothing for `silence_s` seconds."""

    silence_s = SILENCE_S_MAX

    def wait(self, gen: PQGen[RV], interval: float = LOOK_S, timeout: float | None = None) -> RV:
        """What every call of the driver that waits for the server goes through."""
        options = {} if timeout is None else {"timeout": timeout}
        try:
            return super().wait(_limited(gen, time.monotonic() + self.silence_s), interval, **options)
        except _Silent:
            self.close()  # nothing is known about the state of the session
            raise


def _limited(gen: PQGen[RV], until_s: float) -> PQGen[RV]:
    """The driver's generator, until a time: it is resumed at every look, whether or not something has arrived."""
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if not ready and time.monotonic() > until_s:
                raise _Silent("The server has not answered for too long.")
            wanted = gen.send(ready)
    except StopIteration as done:
        value: RV = done.value
        return value


def connect(database_url: str, *, application: str, role: Role | None = None, options: str = "") -> Connection:
    """Open an autocommit connection; `with connection.transaction():` groups statements.

    Args:
        database_url: where.
        application: the name that the server shows.
        role: the database role to become; None stays with the login's own rights.
        options: more session options, as in `-c name=value`; they come after ours, so they win.

    Raises:
        DatabaseUnavailable: no server answers there, or it refuses us.
        NotMigrated: the role does not exist yet.
    """
    ours = f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c idle_in_transaction_session_timeout=60000"
    with translated(), _understood():
        connection = ImpatientConnection.connect(
            database_url,
            autocommit=True,
            connect_timeout=CONNECT_TIMEOUT_S,
            application_name=application,
            options=f"{ours} {options}",
            tcp_user_timeout=NETWORK_TIMEOUT_MS,
            keepalives_idle=10,
            keepalives_interval=3,
            keepalives_count=2,
        )
    arrays.register(connection)
    if role is not None:
        become(connection, role)
    return connection


@contextmanager
def session(database_url: str, *, application: str) -> Iterator[Connection]:
    """A connection with the login's own rights, for the block; the driver's errors leave it as the store's.

    Raises:
        StoreError: as `connect` does, and whatever goes wrong in the block.
    """
    with translated(), closing(connect(database_url, application=application)) as connection:
        yield connection


def answers(connection: Connection) -> None:
    """Ask the server for nothing.

    Raises:
        DatabaseUnavailable: it does not answer.
    """
    connection.execute("SELECT")


def become(connection: Connection, role: Role) -> None:
    """Give up the login's own rights for a role's, as long as the session lasts.

    Raises:
        NotMigrated: the role does not exist yet.
        StoreError: the login is no member of it.
    """
    try:
        with translated():
            connection.execute("SELECT set_config('role', %s, false)", [role])
    except StoreError as error:
        login = "…" if connection.closed else connection.info.user
        connection.close()
        if isinstance(error.__cause__, pg.InvalidParameterValue):
            raise NotMigrated(hint="Run `stocktide cloud migrate`.") from error
        if isinstance(error.__cause__, pg.InsufficientPrivilege):
            raise StoreError(str(error), hint=f"GRANT {role} TO {login}") from error
        raise


@contextmanager
def patient(connection: Connection) -> Iterator[None]:
    """A transaction whose statements may take their time, for what reads a year at once."""
    if isinstance(connection, ImpatientConnection):
        connection.silence_s = math.inf
    try:
        with translated(), connection.transaction():
            connection.execute("SET LOCAL statement_timeout = 0")
            yield
    finally:
        if isinstance(connection, ImpatientConnection):
            connection.silence_s = SILENCE_S_MAX


@contextmanager
def _understood() -> Iterator[None]:
    """An address that the driver cannot read is unavailable, like one where no server answers."""
    try:
        yield
    except psycopg.ProgrammingError as error:
        hint = "It looks like postgresql://user@host:5432/stocktide; see STOCKTIDE_DATABASE_URL."
        raise DatabaseUnavailable("This is not a database's address.", hint=hint) from error


@contextmanager
def translated() -> Iterator[None]:
    """Turn the driver's errors into the store's, so that callers need not know the driver."""
    try:
        yield
    except _CONFLICTS as error:
        raise MergeConflict(_line(error)) from error
    except (pg.UndefinedTable, pg.UndefinedColumn, pg.UndefinedFunction) as error:
        raise NotMigrated(hint="Run `stocktide cloud migrate`.") from error
    except psycopg.DataError as error:
        # Only what lies in the rows themselves: a frame that is judged unstorable loses its entries to quarantine.
        rows_at_fault = error.sqlstate is None or isinstance(error, _UNSTORABLE)
        raise (Unstorable if rows_at_fault else StoreError)(_line(error)) from error
    except (pg.QueryCanceled, _Silent) as error:
        raise StoreTimeout(_line(error)) from error
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise DatabaseUnavailable(_line(error), hint=_HINT_DATABASE) from error
    except psycopg.Error as error:
        raise StoreError(_line(error)) from error


def _line(error: Exception) -> str:
    """The first line of a driver's message; the others repeat the statement."""
    return (str(error).splitlines() or [type(error).__name__])[0]
