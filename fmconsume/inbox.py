"""Runs the work of a message exactly once, where that work is done in one database.

The mark of a message is a row that is written in the transaction of the work itself: both are there
or neither is. Two consumers that get the same message at the same time, on any hosts, meet at the
row: the second one waits for the first, and finds the work done or undone.

It needs SQLAlchemy 2 (the extra "inbox"). It is for PostgreSQL, MariaDB, MySQL and SQLite, at any
isolation level: the unique key, and not what a transaction sees, keeps the second one out.

Any thread may call; an inbox of an AsyncEngine is for the tasks of one loop.
"""

from __future__ import annotations

import hashlib
import itertools
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any, Union

from sqlalchemy import (
    CHAR,
    Column,
    Connection,
    DateTime,
    Engine,
    MetaData,
    String,
    Table,
    bindparam,
    delete,
    insert,
    select,
)
from sqlalchemy.exc import DBAPIError, IntegrityError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from .exceptions import AlreadyDone, HaltConsumer
from .log import get_logger
from .message import Message
from .text import describe, printable

__all__ = ["Inbox"]

_log = get_logger(__name__)

#: Old rows are looked for after so many messages, and at most so many are removed then.
_EVERY, _PIECE = 100, 200
#: What a column for people holds at most, in characters.
_SHOWN = 190

_Scope = Union[Connection, Session]


class _Conflict(Exception):
    """Raised when the row of a message cannot be inserted; the cause is the database's error."""


class Inbox:
    """The marks of finished messages, in a table of their own.

    Args:
        engine: An Engine, or an AsyncEngine: then what is said to return a thing returns an
            awaitable of it, and `transaction` is for `async with`.
        table: The name of the table.
        keep: How long a mark is kept. A message that comes again later than that runs again.
    """

    def __init__(
        self,
        engine: Engine | AsyncEngine,
        *,
        table: str = "fmconsume_inbox",
        keep: timedelta = timedelta(days=30),
    ) -> None:
        self._engine: Any = engine
        self._is_async = isinstance(engine, AsyncEngine)
        self._keep = keep
        self._count = itertools.count(1)
        # Digests, since databases compare texts in ways of their own: they may not tell case, or
        # spaces at the end, and limit the length.
        #: The table, for a tool like Alembic.
        self.table = Table(
            table,
            MetaData(),
            Column("id", CHAR(64), primary_key=True, comment="SHA-256 of queue and key"),
            Column("key_id", CHAR(64), nullable=False, index=True, comment="SHA-256 of the key"),
            Column("queue", String(_SHOWN), nullable=False, comment="for people"),
            Column("message", String(_SHOWN), nullable=False, comment="the key, for people"),
            Column("done_at", DateTime, nullable=False, index=True, comment="UTC"),
        )

        # Made once, since SQLAlchemy takes long to make a statement.
        self._insert = insert(self.table)
        self._find = select(self.table.c.done_at).where(self.table.c.id == bindparam("name"))
        self._is_probed = False

    # -- the table ---------------------------------------------------------

    def create(self) -> Any:
        """Make the table if it is not there; processes that do it at once do no harm."""
        if self._is_async:
            return self._run_async(self._create)
        return self._create(self._engine)

    def _create(self, bind: Engine | Connection) -> None:
        try:
            self.table.create(bind, checkfirst=True)
        except DBAPIError:
            # Another process may have made it meanwhile; if not, this raises again.
            if isinstance(bind, Connection):
                bind.rollback()
            self.table.create(bind, checkfirst=True)

    def forget(self, message_id: str) -> Any:
        """Forget a message, so that it may run again, and give how many marks there were.

        Args:
            message_id: The id, or the key that was given for the message; in any queue.
        """
        statement = delete(self.table).where(self.table.c.key_id == _digest(message_id))
        if self._is_async:
            return self._run_async(lambda connection: connection.execute(statement).rowcount)
        with self._engine.begin() as connection:
            return connection.execute(statement).rowcount

    async def _run_async(self, work: Any) -> Any:
        async with self._engine.begin() as connection:
            return await connection.run_sync(work)

    # -- the work ----------------------------------------------------------

    def transaction(
        self,
        message: Message,
        session: Session | AsyncSession | None = None,
        key: str | None = None,
    ) -> Any:
        """Begin a transaction for the work of a message; a context manager.

        It commits at the end of the block, also where a HaltConsumer without requeue leaves it.
        Any other exception rolls the work back, and the mark with it.

        Args:
            session: Whose transaction it is, if there is one; it must not have begun any.
            key: What stands for the message instead of its id.

        Yields:
            The session, or a connection.

        Raises:
            AlreadyDone: The work was done before. It is for fmconsume, which acknowledges the
                message.
            ValueError: The message has no id, and there is no key.
            sqlalchemy.exc.SQLAlchemyError: From the database, or it has no such table, or the
                transaction was ended inside the block.
        """
        name = message.id if key is None else key
        if not name:
            what = f"a message from queue {message.queue!r} has no id"
            raise ValueError(f"{what}: give key=, a text that stands for it")
        row = self._make_row(message.queue or "", name)
        if self._is_async:
            return self._transaction_async(row, session)
        return self._transaction(row, session)

    def _make_row(self, queue: str, name: str) -> dict[str, Any]:
        return {
            "id": _digest(queue, name),
            "key_id": _digest(name),
            "queue": printable(queue)[:_SHOWN],
            "message": printable(name)[:_SHOWN],
            "done_at": datetime.now(timezone.utc).replace(tzinfo=None),
        }

    @contextmanager
    def _transaction(self, row: dict[str, Any], session: Any) -> Iterator[Any]:
        halt: HaltConsumer | None = None
        if not self._is_probed:
            with self._engine.connect() as connection:
                self._probe(connection)
        try:
            with (session or self._engine).begin() as scope:
                self._enter(session or scope, row)
                try:
                    yield session or scope
                except HaltConsumer as exc:
                    if exc.requeue:
                        raise
                    halt = exc  # The message is done, and the consumer ends.
                self._leave(session or scope, row)
        except _Conflict as exc:
            with self._engine.begin() as connection:
                self._explain(connection, row, exc)
        if next(self._count) % _EVERY == 0:
            try:
                with self._engine.begin() as connection:
                    self._remove_old(connection)
            except DBAPIError as exc:
                _tell_not_removed(exc)
        if halt is not None:
            raise halt

    @asynccontextmanager
    async def _transaction_async(self, row: dict[str, Any], session: Any) -> AsyncIterator[Any]:
        halt: HaltConsumer | None = None
        if not self._is_probed:
            async with self._engine.connect() as connection:
                await connection.run_sync(self._probe)
        try:
            async with (session or self._engine).begin() as scope:
                await (session or scope).run_sync(self._enter, row)
                try:
                    yield session or scope
                except HaltConsumer as exc:
                    if exc.requeue:
                        raise
                    halt = exc
                await (session or scope).run_sync(self._leave, row)
        except _Conflict as exc:
            async with self._engine.begin() as connection:
                await connection.run_sync(self._explain, row, exc)
        if next(self._count) % _EVERY == 0:
            try:
                await self._run_async(self._remove_old)
            except DBAPIError as exc:
                _tell_not_removed(exc)
        if halt is not None:
            raise halt

    def _probe(self, connection: Connection) -> None:
        """Refuse an engine that commits each statement: it cannot undo a mark."""
        row = self._make_row("", secrets.token_hex())
        connection.execute(self._insert, row)
        connection.rollback()
        is_left = connection.execute(self._find, {"name": row["id"]}).scalar() is not None
        if is_left:
            connection.execute(delete(self.table).where(self.table.c.id == row["id"]))
            raise InvalidRequestError("the engine commits each statement, and can undo none")
        self._is_probed = True

    def _enter(self, scope: _Scope, row: dict[str, Any]) -> None:
        """Insert the row; this waits for another transaction that has inserted it."""
        try:
            scope.execute(self._insert, row)
        except IntegrityError as exc:
            raise _Conflict from exc

    def _leave(self, scope: _Scope, row: dict[str, Any]) -> None:
        """Refuse to call a message done whose transaction is not there any more.

        PostgreSQL turns a commit into a rollback, without an error, where a statement has failed.
        """
        if scope.execute(self._find, {"name": row["id"]}).scalar() is None:
            name = f"message {row['message']} from queue {row['queue']!r}"
            raise InvalidRequestError(
                f"the transaction of {name} was rolled back inside the block: its work is not done"
            )

    def _explain(self, connection: Connection, row: dict[str, Any], conflict: _Conflict) -> None:
        """Raise AlreadyDone if the row is there, else what the database said."""
        done_at = connection.execute(self._find, {"name": row["id"]}).scalar()
        if done_at is None:
            assert conflict.__cause__ is not None
            raise conflict.__cause__
        raise AlreadyDone(
            f"message {row['message']} from queue {row['queue']!r} was done at {done_at} UTC"
        ) from None

    def _remove_old(self, connection: Connection) -> None:
        """Remove some of the rows that are too old, but none that somebody else removes."""
        table, limit = self.table, datetime.now(timezone.utc).replace(tzinfo=None) - self._keep
        old = select(table.c.id).where(table.c.done_at < limit).limit(_PIECE)
        names = connection.execute(old.with_for_update(skip_locked=True)).scalars().all()
        if names:
            connection.execute(delete(table).where(table.c.id.in_(names)))


def _tell_not_removed(exc: DBAPIError) -> None:
    _log.warning("old rows of the inbox could not be removed: %s", describe(exc))


def _digest(*parts: str) -> str:
    """Give a number for texts that no two lists of texts share."""
    encoded = [part.encode("utf-8", "surrogatepass") for part in parts]
    return hashlib.sha256(b"".join(b"%d:%s" % (len(part), part) for part in encoded)).hexdigest()
