"""Owns the connection and all state, and decides what happens to each delivery.

The supervisor is one thread. Other threads call `mailbox.post`, `stop` and `abandon`, and may read
`state` and `stats`; everything else belongs to the thread itself.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from queue import Empty
from time import monotonic
from typing import Callable, NamedTuple

from ..broker.addresses import Address, Addresses
from ..broker.backoff import Backoff, nack_delay
from ..broker.errors import NOT_FOUND, RESOURCE_LOCKED, SessionLost
from ..broker.opener import SessionOpener
from ..broker.session import Session
from ..broker.topology import Topology
from ..delivery import NACK, RETURNS, Delivery, Outcome
from ..exceptions import (
    BodiesUnreadable,
    ConfigurationException,
    ConsumerCanceled,
    ExitCode,
    FmconsumeError,
    HaltConsumer,
    StopTimeout,
)
from ..log import get_logger
from ..shortage import shortage
from ..state.notes import Notes
from ..text import brief, describe
from .account import DeliveryAccount
from .bodies import BodyGuard
from .drain import Drain
from .intake import Intake
from .mailbox import Item, Mailbox
from .outage import Outage
from .prefetch import MOST_HELD, Prefetch
from .states import End, Observer, Phase, Run, State, Stats
from .status import Status
from .workers import Pool, Post

__all__ = ["Options", "Supervisor"]

_log = get_logger(__name__)

#: Longest sleep in seconds. pika's poller wakes as often by itself, so shorter costs more
#: and longer saves nothing.
_SLEEP = 5.0
#: Longest sleep while draining, in seconds: the broker tells nobody that a queue is empty.
_DRAIN_SLEEP = 0.2
#: A session that has lived for this many seconds counts as good: the backoff starts anew.
_GOOD_AFTER = 5.0
#: channel.close codes whose cause may pass: 404 not found, 405 resource locked. After the first
#: session both may, since the broker has accepted the topology before. Until then only 405 may, and
#: only for `_AT_FIRST` seconds: a peer that is gone may still hold an exclusive queue.
_RETRY, _RETRY_AT_FIRST = {NOT_FOUND, RESOURCE_LOCKED}, {RESOURCE_LOCKED}
_AT_FIRST = 60.0


class Options(NamedTuple):
    """How the engine behaves.

    Attributes:
        workers: Callbacks that run at the same time.
        nack_initial: Seconds to hold a message's first Nack; 0 is none.
        nack_maximum: Longest hold, seconds.
        remember: How many finished messages are remembered, so that none runs again.
        limit: Deliveries to work on before stopping; None is no limit.
        drain: Stop once the queues are empty but for messages that were returned.
        callback_timeout: Seconds after which a running callback is logged; None is never.
        is_guarded: Nothing keeps the messages that are rejected because they do not decode.
    """

    workers: int = 1
    nack_initial: float = 1.0
    nack_maximum: float = 60.0
    remember: int = 20_000
    limit: int | None = None
    drain: bool = False
    callback_timeout: float | None = None
    is_guarded: bool = False


class Supervisor(threading.Thread):
    """Consumes until told to stop, or until something ends it.

    Args:
        addresses: Brokers, tried in turn.
        open_session: Opens a session, as `broker.session.open_session` does.
        make_pool: Makes the workers, which post to this supervisor's mailbox.
        report: Gets the End, as this thread's last act.
        observers: Are told of states, outcomes and ticks.
        notes: What outlives the process; None is nothing. It is closed once no callback runs.
        backoff: Delays between sessions; None makes one.
    """

    def __init__(
        self,
        *,
        addresses: Sequence[Address],
        topology: Topology,
        options: Options,
        open_session: Callable[..., Session],
        make_pool: Callable[[Post], Pool],
        report: Callable[[End], None],
        observers: Sequence[Observer] = (),
        notes: Notes | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        super().__init__(name="fmconsume-supervisor", daemon=True)
        self._addresses = Addresses(addresses)
        self._open_session = open_session
        self._topology = topology
        self._options = options
        self._report = report
        self._backoff = backoff or Backoff()
        #: Counted here, read by any thread.
        self.stats = Stats()
        #: Receives outcomes, and actions to run on this thread.
        self.mailbox = Mailbox()
        self._pool = make_pool(self.mailbox.post)
        self.workers = self._pool.workers
        self._notes = notes
        #: Outcomes until the limit is reached; None is no limit.
        self._remaining = options.limit
        #: The session in use. Set here, read by any thread that stops the consumer.
        self._session: Session | None = None
        #: How many sessions there have been.
        self._sessions = 0
        self._account = DeliveryAccount(options.remember, topology.counting_queues, notes)
        self._intake = Intake(
            self._pool.inbox,
            options.limit,
            lambda: self._account.in_hand,
            notes.receive if notes else None,
        )
        self._prefetch = Prefetch(
            self._account, topology, options.workers, lambda: self._intake.room
        )
        self._guard = BodyGuard(self._account, topology, options.is_guarded)
        self._status = Status(
            observers=observers,
            stats=self.stats,
            account=self._account,
            intake=self._intake,
            workers=self.workers,
            prefetch=self._prefetch,
            callback_timeout=options.callback_timeout,
            notes=notes,
        )
        #: Longest sleep, seconds.
        self._sleep = min(_DRAIN_SLEEP if options.drain else _SLEEP, self._status.interval)
        self._drain = Drain(self._account, self._prefetch) if options.drain else None
        #: `stats.deduplicated` when this session began; None once the difference is logged.
        self._deduplicated_before: int | None = None
        #: The end that has come; None before. Set once; only an abandonment, or a failure of this
        #: thread, replaces it.
        self._ending: End | None = None
        #: The end has come, and the unstarted deliveries are returned. From now on no delivery is
        #: accepted, and those in hand may be settled.
        self._may_settle_at_last = False
        #: Callbacks that run are not waited for any more.
        self._is_abandoned = False
        #: When the thread began, monotonic seconds.
        self._born = monotonic()
        #: Ends when a session consumes; the next one then begins with its loss.
        self._outage = Outage()

    # -- for other threads -------------------------------------------------

    @property
    def state(self) -> State:
        """Why messages flow, or why they do not. Thread: any."""
        return self._status.state

    @property
    def runs(self) -> list[Run]:
        """What the workers work on now, the longest first. Thread: any."""
        return self._status.runs

    def stop(self) -> None:
        """Stop gracefully. Thread: any."""
        session = self._session
        if session is not None:
            session.hurry()
        self.mailbox.post(partial(self._end, None, ExitCode.OK))

    def abandon(self, end: End) -> None:
        """Stop without waiting for callbacks. Thread: any."""
        self.mailbox.post(partial(self._abandon, end))

    # -- the thread --------------------------------------------------------

    def run(self) -> None:
        """Consume, and report the end, even if the supervisor fails."""
        self._born = monotonic()
        try:
            self._supervise()
        except BaseException as exc:
            self._ending = _failure(exc)
        assert self._ending is not None
        try:
            self._pool.stop.set()
            self._pool.end(may_leave=False)  # Unless it has been told before.
            if self._notes is not None:
                self._notes.close()
            self._say_how_it_ended(self._ending)
        except Exception as exc:
            _log.error("the end could not be told to all who want to know", exc_info=exc)
        finally:
            self._report(self._ending)

    def _say_how_it_ended(self, end: End) -> None:
        reason = "asked to stop" if end.error is None else brief(describe(end.error))
        seconds = monotonic() - self._born
        self._status.enter(Phase.STOPPED, f"stopped after {seconds:.1f} s ({reason}): {self.stats}")

    def _supervise(self) -> None:
        self._begin()
        while self._ending is None:
            try:
                session = self._open()
                if session is not None:
                    self._serve(session)
            except SessionLost as exc:
                self._survive(exc)
            except FmconsumeError as exc:
                self._forget_session()
                self._end(exc, exc.exit_code)
        if self._is_waiting_for_callbacks:
            self._tell_stopping()
        while self._is_waiting_for_callbacks:
            self._wait_for_mail(self._sleep)
        self._finish()

    def _begin(self) -> None:
        """Start the workers, one of which enters a callback that is a context manager."""
        self._pool.start()
        starting = State(Phase.CONNECTING, "starting: the callback's __enter__ runs")
        error = self._wait_for_step(self._pool.stay.entered, starting)
        if error is not None and self._ending is not None:
            _log.error("the callback's __enter__ failed", exc_info=error)
        elif error is not None:
            code: int = ExitCode.TEMPORARY
            if isinstance(error, ConfigurationException):
                code = error.exit_code
            self._end(error, code)

    def _finish(self) -> None:
        """End the workers; the one that entered the callback leaves it, unless any still runs."""
        self._pool.end(may_leave=not self._is_abandoned)
        stopping = State(Phase.STOPPING, "stopping: the callback's __exit__ runs")
        error = self._wait_for_step(self._pool.stay.left, stopping)
        if error is not None:
            _log.error("the callback's __exit__ failed", exc_info=error)
            if self._ending is None or self._ending.exit_code == ExitCode.OK:
                self._ending = End(error, ExitCode.CALLBACK)

    def _wait_for_step(self, step: Future[None], state: State) -> BaseException | None:
        """Wait until the callback is entered or left, unless told not to wait for callbacks.

        Returns:
            What that raised, if anything.
        """
        if not (step.done() or self._is_abandoned):
            self._status.enter(*state)
        step.add_done_callback(lambda _: self.mailbox.post(_nothing))
        while not (step.done() or self._is_abandoned):
            self._wait_for_mail(self._sleep)
        return step.exception() if step.done() else None

    def _tell_stopping(self) -> None:
        text = f"stopping: {self._account.in_hand} deliveries in hand"
        self._status.enter(Phase.STOPPING, text)

    def _open(self) -> Session | None:
        """Open a session with the first address that works; None when told to stop meanwhile.

        Raises:
            SessionLost: No address works now, but one of them may later.
            FmconsumeError: Every address refuses for good.
        """
        self._outage.begin_attempt()
        refusals: list[FmconsumeError] = []
        losses: list[SessionLost] = []
        for address in self._addresses:
            if self._ending is not None:
                return None
            try:
                session = self._open_at(address)
            except FmconsumeError as exc:
                refusals.append(exc)
            except SessionLost as exc:
                losses.append(exc)
            else:
                self._addresses.prefer(address)
                return session
        if not losses:
            raise refusals[0]
        raise SessionLost("; ".join(map(str, [*losses, *refusals])))

    def _open_at(self, address: Address) -> Session | None:
        text = f"{self._outage.describe_attempt()}connecting to {address.name}"
        self._status.enter(Phase.CONNECTING, text)
        open_session = partial(
            self._open_session,
            address,
            self._topology,
            deliver=self._on_delivery,
            number=self._sessions + 1,
            retry_codes=self._retry_codes,
        )
        opener = SessionOpener(
            open_session, self._prefetch.prepare(), lambda: self.mailbox.post(_nothing)
        )
        try:
            opener.start()
        except RuntimeError as exc:
            if not self._sessions:
                raise  # No session was open yet, so a new start of the process loses nothing.
            raise SessionLost(f"{address.name}: {shortage(exc) or exc}") from exc
        while self._ending is None:
            self._wait_for_mail(self._sleep)
            with suppress(Empty):
                return opener.get()
        opener.abandon()
        return None

    @property
    def _retry_codes(self) -> set[int]:
        """The channel.close codes that make a SessionLost now, since their cause may pass.

        None while draining: the messages of a queue go with it, be it gone already or exclusive to
        another connection, so that there is nothing to wait for.
        """
        if self._options.drain:
            return set()
        if self._sessions:
            return _RETRY
        return _RETRY_AT_FIRST if monotonic() - self._born < _AT_FIRST else set()

    def _serve(self, session: Session) -> None:
        """Consume until the end, then wind down; raises SessionLost."""
        self._sessions = session.number
        self.stats.reconnections = self._sessions - 1
        self._prefetch.begin(session)
        if self._notes is not None:
            self._notes.begin_session(session.queues)
        self._session = session
        self.mailbox.attach(session.wake)
        session.start_ticking(self._sleep)
        if session.number > 1:
            self._deduplicated_before = self.stats.deduplicated
            session.call_later(_GOOD_AFTER, self._tell_deduplicated)
        began = monotonic()
        try:
            self._consume(session)
            self._wind_down(session)
        except BaseException:
            session.discard()
            raise
        else:
            if session.close() and self._notes is not None and not self._is_abandoned:
                self._notes.settle()
        finally:
            self._session = None
            self.mailbox.detach()
            self._tell_deduplicated()
            if monotonic() - began > _GOOD_AFTER:
                self._backoff.reset()

    def _consume(self, session: Session) -> None:
        self._read_mailbox(session)
        self._outage = Outage()
        self._status.enter(Phase.CONSUMING, f"consuming from {session.name}")
        while self._ending is None:
            self._turn(session)
            if self._ending is None and not session.is_consuming:
                try:
                    session.raise_cancellation()
                except ConsumerCanceled as exc:
                    self._end(exc, exc.exit_code)
            if self._ending is None and self._drain is not None:
                end = self._drain.look(session, partial(self._receive, session, 0))
                if end is not None:
                    self._end(*end)

    def _wind_down(self, session: Session) -> None:
        """Return the deliveries that no worker has begun, let callbacks finish, settle everything.

        No verdict is sent before the consumers are cancelled: the broker would deliver a returned
        message again at once. A single active consumer is not cancelled: it stays the active one
        until its callbacks are settled, and the channel's end returns the rest.
        """
        self._tell_stopping()
        self._give_up_unstarted()
        if not self._topology.has_single_active_consumer:
            session.cancel()
            # Deliveries that came before the broker had answered the cancel.
            self._give_up_unstarted()
            self._account.release_all()
        self._may_settle_at_last = True
        while self._is_waiting_for_callbacks:
            self._turn(session)
        self._settle(session)
        if self._topology.has_single_active_consumer:
            session.leave()

    def _give_up_unstarted(self) -> None:
        """Return to their queues the deliveries that no worker has begun."""
        unstarted = self._intake.take_back()
        self.stats.count(NACK, len(unstarted))
        if self._topology.has_single_active_consumer:
            self._account.forget_unstarted(unstarted)
        else:
            self._account.return_unstarted(unstarted)

    def _turn(self, session: Session) -> None:
        """Sleep until an event comes, hand out the new deliveries, read the mailbox, settle."""
        given = self._receive(session)
        self.mailbox.linger(self._intake.inbox, given)
        if 0 < 2 * len(self._account) < self._topology.prefetch_count:
            # RabbitMQ sends the first of many messages alone. If we settled it alone, the next ones
            # would come in small parts, too. So look once more before settling.
            given = self._receive(session, 0)
            self.mailbox.linger(self._intake.inbox, given)
        self._read_mailbox(session)

    def _receive(self, session: Session, seconds: float | None = None) -> int:
        """Wait for the next event, `seconds` at most, and hand out the deliveries that have come.

        Returns:
            How many; none once the end has come.
        """
        session.wait(seconds)
        return self._intake.hand_out() if self._ending is None else 0

    def _read_mailbox(self, session: Session) -> None:
        """Settle the outcomes in the mailbox; then, while the broker works on, count them."""
        for item in self.mailbox.collect():
            self._accept(item)
        if self._ending is None:
            self._prefetch.ask(session)
        self._settle(session)
        self._follow_up()
        self._settle(session)  # `_follow_up` has released the Nacks that have no delay.
        if self._ending is None and self._intake.is_held_up:
            self._let_suspect_run(session)
        self._status.tick(session if self._ending is None else None)

    def _let_suspect_run(self, session: Session) -> None:
        """Hand out what had to wait, once it may run alone and the broker has what was settled.

        Else the death that it may cause would take a verdict with it that is on its way.
        """
        if self._intake.is_alone:
            session.depths()
        self._intake.hand_out(may_be_suspect=self._intake.is_alone)

    def _settle(self, session: Session) -> None:
        """Send the verdicts that are due; after the end has come, only once that is allowed."""
        if self._ending is not None and not self._may_settle_at_last:
            return
        frames = self._account.take_frames()
        if frames:
            session.settle(frames)
            # A session counts as good once it has settled something, or lived for a while.
            self._backoff.reset()

    def _wait_for_mail(self, seconds: float) -> None:
        """Wait for one item while there is no session, `seconds` at most, and accept it."""
        with suppress(Empty):
            self._accept(self.mailbox.wait(max(0.0, min(seconds, self._sleep))))
        self._follow_up()
        self._status.tick(None)

    def _survive(self, loss: SessionLost) -> None:
        """Forget a session and wait before the next one, unless the end has come."""
        reason = self._explain(loss)
        self._forget_session()
        if self._ending is not None:
            _log.warning("connection lost while stopping: %s", reason)
            return
        delay = self._backoff.next()
        text = f"{self._outage.describe_wait(delay)}: {reason}"
        self._status.enter(Phase.WAITING, text)
        deadline = monotonic() + delay
        while self._ending is None and monotonic() < deadline:
            self._wait_for_mail(deadline - monotonic())

    def _forget_session(self) -> None:
        """Wait no more for what a session delivered and no worker has begun: the broker has it."""
        self._follow_up()
        self._account.lose(self._intake.take_back())

    def _explain(self, loss: SessionLost) -> str:
        """Give the text of a loss, and what a person has to change if a slow callback is likely.

        Source: RabbitMQ closes the channel of a delivery that is not acknowledged within
        consumer_timeout, also of one that was only prefetched; pika does not tell us why.
        """
        oldest = self._account.oldest_outstanding
        if not loss.is_by_channel or oldest is None:
            return str(loss)
        cure = f"lower qos.prefetch_count ({self._topology.prefetch_count})"
        if self._account.is_held(oldest):
            cure = f"lower failures.delay.max ({self._options.nack_maximum:g} s)"
        return (
            f"{loss}; {oldest.name} is unacknowledged for {monotonic() - oldest.received:.0f} s: "
            "if that is longer than RabbitMQ's consumer_timeout (30 minutes by default), raise "
            f"it, or {cure}"
        )

    def _tell_deduplicated(self) -> None:
        """Log once for each reconnection how many redelivered messages were not run again."""
        before, self._deduplicated_before = self._deduplicated_before, None
        if before is not None:
            _log.info(
                "reconnected; %d redelivered messages had run and were not run again",
                self.stats.deduplicated - before,
            )

    @property
    def _is_waiting_for_callbacks(self) -> bool:
        return bool(self._account.in_hand) and not self._is_abandoned

    # -- events ------------------------------------------------------------

    def _accept(self, item: Item) -> None:
        """Run an action, or conclude an outcome; `_follow_up` counts it later."""
        if not isinstance(item, Outcome):
            item()
            return
        if self._guard.is_open or not self._is_held_by_guard(item):
            self._account.conclude(item)
        error = item.error
        if error is not None:
            self._end(error, _callback_exit_code(error))
        if self._remaining is not None:
            self._remaining -= 1
            if self._remaining == 0:
                self._end(None, ExitCode.OK)

    def _is_held_by_guard(self, outcome: Outcome) -> bool:
        try:
            return self._guard.holds(outcome)
        except BodiesUnreadable as exc:
            self._end(exc, exc.exit_code)
            return True

    def _follow_up(self) -> None:
        """Count the concluded outcomes, tell the observers, and hold Nacks back."""
        for outcome in self._account.flush():
            if outcome.is_repeat:
                self.stats.deduplicated += 1
            else:
                self.stats.count(outcome.verdict)
                self._status.tell_outcome(outcome)
            if outcome.verdict in RETURNS:
                self._schedule_release(outcome)

    def _on_delivery(self, delivery: Delivery) -> None:
        self.stats.received += 1
        if self._may_settle_at_last:
            self.stats.count(NACK)  # Closing the channel returns it.
        elif self._account.receive(delivery):
            self._intake.add(delivery)
        else:
            self.stats.deduplicated += 1

    def _schedule_release(self, outcome: Outcome) -> None:
        """Release a held Nack after its delay, since RabbitMQ would redeliver at once."""
        options, target = self._options, outcome.target
        delay = nack_delay(options.nack_initial, options.nack_maximum, outcome.returns)
        session, release = self._session, partial(self._account.release, target.tag)
        if session is None or session.number != target.session:
            return  # The session is over, so that the message is in its queue already.
        if self._ending is None:
            # A drain holds each Nack until its end, so that no message comes again meanwhile.
            if not options.drain:
                outcome.due = monotonic() + delay
                session.call_later(delay, release) if delay else release()
                self._release_surplus()
        elif self._may_settle_at_last and not self._topology.has_single_active_consumer:
            release()

    def _release_surplus(self) -> None:
        """Return the oldest held message where more are held than may be."""
        oldest = self._account.oldest_held
        if oldest is not None and self._account.held > MOST_HELD + self._topology.prefetch_count:
            self._account.release(oldest.tag)

    def _end(self, error: BaseException | None, exit_code: int) -> None:
        """Begin to stop, for this reason unless there was one before."""
        if self._ending is None:
            self._ending = End(error, exit_code)
            self._guard.give_up()
            self._pool.stop.set()

    def _abandon(self, end: End) -> None:
        """Stop without waiting for callbacks."""
        if not self._is_abandoned:
            self._is_abandoned = True
            for worker in self.workers:
                if worker.is_busy:
                    _log.warning("not waiting for a callback: %s", worker.describe())
            self.stats.abandoned = sum(worker.current is not None for worker in self.workers)
            has_failed = self._ending is not None and self._ending.exit_code != ExitCode.OK
            if not (has_failed and isinstance(end.error, StopTimeout)):
                self._ending = end
            self._pool.stop.set()


def _failure(exc: BaseException) -> End:
    """Give the end after an exception: a shortage on this machine, or else a bug."""
    short = shortage(exc)
    if short is not None:
        return End(short, short.exit_code)
    _log.critical("the supervisor failed, which is a bug", exc_info=exc)
    return End(exc, ExitCode.UNEXPECTED)


def _callback_exit_code(error: BaseException) -> int:
    """Give the exit code for what a callback raised: only a HaltConsumer brings its own."""
    return error.exit_code if isinstance(error, HaltConsumer) else ExitCode.CALLBACK


def _nothing() -> None:
    """Do nothing; the item itself ends the supervisor's wait for mail."""
