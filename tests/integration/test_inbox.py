"""The inbox on each kind of database, and behind a consumer."""

from __future__ import annotations

import asyncio
import threading
from contextlib import ExitStack, suppress
from datetime import datetime, timedelta, timezone

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from fmconsume.exceptions import AlreadyDone, HaltConsumer, Nack
from fmconsume.inbox import Inbox
from fmconsume.message import Message
from tests.waiting import PATIENCE, wait_until

from .broker import Depth
from .databases import SERVERS
from .running import numbered

#: The drivers for asyncio, by that of the same database without it.
_ASYNC = {"sqlite": "sqlite+aiosqlite", "postgresql+psycopg": "postgresql+psycopg"}
work = sa.Table("work", sa.MetaData(), sa.Column("n", sa.Integer))


@pytest.fixture(scope="module")
def servers():
    """The URL of a server of each kind, started when it is needed first."""
    started = {}
    with ExitStack() as stack:

        def url_of(name):
            if name not in started:
                started[name] = stack.enter_context(SERVERS[name]())
            return started[name]

        yield url_of


@pytest.fixture(params=SERVERS)
def engine(request, servers):
    """A database of each kind, with an empty table for the work, and no inbox."""
    engine = sa.create_engine(servers(request.param))
    yield from _empty(engine)


@pytest.fixture
def sqlite_engine(servers):
    """The same with SQLite only, where the database makes no difference."""
    yield from _empty(sa.create_engine(servers("sqlite")))


def _empty(engine):
    names = sa.inspect(engine).get_table_names()
    with engine.begin() as connection:
        for name in names:
            connection.execute(sa.text(f"DROP TABLE {name}"))
    work.create(engine)
    yield engine
    engine.dispose()


def make_message(message_id="apple", queue="fruit"):
    """Make a message as it comes from a queue."""
    message = Message(topic="a", body={"n": 1})
    message.id, message.queue = message_id, queue
    return message


def count_work(engine):
    """Count the rows of the work."""
    with engine.connect() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(work)).scalar()


def run(inbox, message, error=None, **more):
    """Do the work of a message; tell whether it was done now."""
    try:
        with inbox.transaction(message, **more) as scope:
            scope.execute(sa.insert(work).values(n=1))
            if error is not None:
                raise error
    except AlreadyDone:
        return False
    return True


def test_once(engine):
    """The work is done once for each message, each queue and each key, however alike they are."""
    inbox = Inbox(engine)
    inbox.create()
    inbox.create()
    ids = ["apple", "Apple", "apple ", "äpple", "apple\0", "\ud800", "x" * 10_000, "x" * 10_001]
    for message_id in ids:
        assert run(inbox, make_message(message_id))
    for message_id in ids:
        assert not run(inbox, make_message(message_id))
    assert run(inbox, make_message("apple", "leaf"))
    assert run(inbox, make_message("apple"), key="another")
    assert not run(inbox, make_message(None), key="another")
    assert count_work(engine) == len(ids) + 2
    told = r"message apple from queue 'fruit' was done at 20.* UTC"
    with pytest.raises(AlreadyDone, match=told), inbox.transaction(make_message()):
        raise AssertionError("it was run")


@pytest.mark.parametrize("error", [ValueError("no"), Nack(), HaltConsumer(requeue=True)], ids=repr)
def test_rollback(engine, error):
    """An exception leaves no work and no mark."""
    inbox = Inbox(engine)
    inbox.create()
    with suppress(type(error)):
        run(inbox, make_message(), error)
    assert count_work(engine) == 0
    assert run(inbox, make_message())


def test_halt(engine):
    """A callback that ends the consumer with a message that is done has done it."""
    inbox = Inbox(engine)
    inbox.create()
    with pytest.raises(HaltConsumer):
        run(inbox, make_message(), HaltConsumer(3))
    assert count_work(engine) == 1
    assert not run(inbox, make_message())


def _roll_back(connection):
    connection.rollback()


def _fail_quietly(connection):
    with suppress(sa.exc.SQLAlchemyError):
        connection.execute(sa.text("SELECT nothing FROM nowhere"))


@pytest.mark.parametrize("end", [_roll_back, _fail_quietly])
def test_rolled_back_inside(engine, end):
    """A block whose transaction is gone at its end has done nothing, and says so."""
    inbox = Inbox(engine)
    inbox.create()

    def work_in_vain():
        with inbox.transaction(make_message()) as connection:
            connection.execute(sa.insert(work).values(n=1))
            end(connection)

    if end is _fail_quietly and engine.dialect.name != "postgresql":
        work_in_vain()  # Only PostgreSQL gives the transaction up.
        assert count_work(engine) == 1
        return
    with pytest.raises(sa.exc.SQLAlchemyError):
        work_in_vain()
    assert count_work(engine) == 0
    assert run(inbox, make_message())


def test_autocommit(engine):
    """An engine that commits each statement cannot undo the mark, and is refused."""
    inbox = Inbox(engine.execution_options(isolation_level="AUTOCOMMIT"))
    inbox.create()
    with pytest.raises(sa.exc.InvalidRequestError, match="commits each statement"):
        run(inbox, make_message())
    assert count_work(engine) == 0


def test_session(engine):
    """The work may be done with a session; there is one transaction for it and the mark."""
    inbox = Inbox(engine)
    inbox.create()
    for expected in (True, False):
        with Session(engine) as session:
            assert run(inbox, make_message(), session=session) is expected
    with Session(engine) as session, pytest.raises(ValueError, match="no"):
        run(inbox, make_message("plum"), ValueError("no"), session=session)
    assert count_work(engine) == 1


@pytest.mark.parametrize("is_kept", [True, False])
def test_two_at_once(engine, is_kept):
    """The second waits for the first; it works only if the first fails."""
    inbox, other = Inbox(engine), Inbox(engine)
    inbox.create()
    entered, go, results = threading.Event(), threading.Event(), []

    def first():
        with suppress(ValueError), inbox.transaction(make_message()) as connection:
            connection.execute(sa.insert(work).values(n=1))
            entered.set()
            assert go.wait(PATIENCE)
            if not is_kept:
                raise ValueError

    def second():
        results.append(run(other, make_message()))

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert entered.wait(PATIENCE)
    threads[1].start()
    threads[1].join(0.3)
    assert threads[1].is_alive()
    go.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert results == [not is_kept]
    assert count_work(engine) == 1


def test_forget(engine):
    """What is forgotten may run again, in every queue."""
    inbox = Inbox(engine)
    inbox.create()
    for queue in ("fruit", "leaf"):
        run(inbox, make_message("apple", queue))
    run(inbox, make_message("plum"))
    assert inbox.forget("apple") == 2
    assert inbox.forget("pear") == 0
    assert run(inbox, make_message())
    assert not run(inbox, make_message("plum"))


def test_old_rows(engine):
    """Rows beyond their time go in passing, some at a time, and another one's lock is no matter."""
    inbox = Inbox(engine, keep=timedelta(days=1))
    inbox.create()
    if engine.dialect.name == "mysql" and engine.dialect.server_version_info < (10, 6):
        pytest.skip("MariaDB before 10.6 cannot pass by a row that is locked: it keeps old rows")
    for number in range(3):
        run(inbox, make_message(str(number)))
    two_days_ago = datetime.now(timezone.utc).replace(tzinfo=None) - timedelta(days=2)
    with engine.begin() as connection:
        connection.execute(sa.update(inbox.table).values(done_at=two_days_ago))
    run(inbox, make_message("new"))
    if engine.dialect.name == "sqlite":
        for number in range(100):
            run(inbox, make_message(f"more {number}"))
    else:
        with engine.connect() as holder:
            columns = inbox.table.c
            (name,) = holder.execute(sa.select(columns.id).where(columns.message == "1")).one()
            holder.rollback()
            # By its key, since without an index MariaDB locks all that it looks at.
            holder.execute(sa.select(columns.id).where(columns.id == name).with_for_update())
            for number in range(100):
                run(inbox, make_message(f"more {number}"))
            with engine.connect() as connection:
                names = connection.execute(sa.select(inbox.table.c.message)).scalars().all()
            assert "1" in names
            assert "0" not in names
        for number in range(100):
            run(inbox, make_message(f"even more {number}"))
    with engine.connect() as connection:
        names = connection.execute(sa.select(inbox.table.c.message)).scalars().all()
    assert not {"0", "1", "2"} & set(names)
    assert "new" in names


@pytest.mark.parametrize("name", ["sqlite", "postgresql"])
def test_async(servers, name):
    """The same with asyncio: a connection or a session, done once, and rolled back."""
    engine = next(_empty(sa.create_engine(servers(name))))
    url = str(engine.url).replace(engine.url.drivername, _ASYNC[engine.url.drivername], 1)

    async def run_async(inbox, message, error=None, **more):
        try:
            async with inbox.transaction(message, **more) as scope:
                await scope.execute(sa.insert(work).values(n=1))
                if error:
                    raise error
        except AlreadyDone:
            return False
        return True

    async def main():
        async_engine = create_async_engine(url)
        inbox = Inbox(async_engine)
        await inbox.create()
        await inbox.create()
        with suppress(ValueError):
            await run_async(inbox, make_message(), ValueError())
        assert await run_async(inbox, make_message())
        assert not await run_async(inbox, make_message())
        async with AsyncSession(async_engine) as session:
            assert await run_async(inbox, make_message("plum"), session=session)
        with pytest.raises(HaltConsumer):
            await run_async(inbox, make_message("pear"), HaltConsumer())
        assert await inbox.forget("plum") == 1
        for number in range(100):
            await run_async(inbox, make_message(str(number)))
        await async_engine.dispose()

    asyncio.run(main())
    assert count_work(engine) == 103
    engine.dispose()


def test_connection_lost(servers):
    """A connection that is lost in the middle is the callback's exception; the next run works."""
    engine = next(_empty(sa.create_engine(servers("postgresql"))))
    inbox = Inbox(engine)
    inbox.create()

    def lose_it():
        with inbox.transaction(make_message()) as connection:
            pid = connection.execute(sa.text("SELECT pg_backend_pid()")).scalar()
            with engine.connect() as other:
                other.execute(sa.text(f"SELECT pg_terminate_backend({pid})"))
            connection.execute(sa.insert(work).values(n=1))

    with pytest.raises(sa.exc.OperationalError):
        lose_it()
    assert count_work(engine) == 0
    assert run(inbox, make_message())
    engine.dispose()


def test_answer_lost(engine, monkeypatch):
    """A commit whose answer is lost is the callback's exception; the next run finds it done."""
    inbox = Inbox(engine)
    inbox.create()
    assert run(inbox, make_message("plum"))
    commit = engine.dialect.do_commit

    def lose_the_answer(connection):
        commit(connection)
        raise ConnectionError("the answer is lost")

    monkeypatch.setattr(engine.dialect, "do_commit", lose_the_answer)
    with pytest.raises(ConnectionError):
        run(inbox, make_message())
    monkeypatch.undo()
    engine.dispose()
    assert not run(inbox, make_message())
    assert count_work(engine) == 2


def test_no_id(sqlite_engine):
    """A message without an id is refused, and the error says what to do."""
    inbox = Inbox(sqlite_engine)
    with pytest.raises(ValueError, match="a message from queue 'fruit' has no id: give key="):
        inbox.transaction(make_message(None))


def test_no_table(sqlite_engine):
    """A table that is missing is the database's own error, and nothing is run."""
    with pytest.raises(sa.exc.OperationalError, match="no such table: fmconsume_inbox"):
        run(Inbox(sqlite_engine), make_message())
    assert count_work(sqlite_engine) == 0


def test_other_table(engine):
    """A table that has other columns is no reason to take a message for done."""
    inbox = Inbox(engine, table="other")
    other = sa.Table("other", sa.MetaData(), *(column._copy() for column in inbox.table.columns))
    other.append_column(sa.Column("more", sa.Integer, nullable=False))
    other.create(engine)
    with pytest.raises((sa.exc.IntegrityError, sa.exc.OperationalError), match="more"):
        run(inbox, make_message())
    assert count_work(engine) == 0


def test_consumer(broker, queue, run_consumer, sqlite_engine):
    """A message that was done is acknowledged, and counted as deduplicated."""
    inbox = Inbox(sqlite_engine)
    inbox.create()

    def callback(message):
        with inbox.transaction(message, key=str(message.body["n"] // 2)) as connection:
            connection.execute(sa.insert(work).values(n=message.body["n"]))

    broker.publish(queue, numbered(20))
    running = run_consumer(callback, queue)
    wait_until(lambda: broker.depth(queue) == Depth(0, 0))
    running.stop()
    stats = running.consumer.stats
    assert (stats.received, stats.acknowledged, stats.deduplicated) == (20, 10, 10)
    assert count_work(sqlite_engine) == 10
