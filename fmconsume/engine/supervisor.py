"""The supervisor owns the connection and all state, and decides what happens to each delivery.

It is one thread. Other threads call `post`, `stop` and `abandon`, and may read
`state` and `stats`; everything else belongs to the thread itself.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, Callable, NamedTuple

from ..exceptions import (
    BadDeclaration,
    ConsumerCanceled,
    ExitCode,
    FmconsumeError,
    HaltConsumer,
    PermissionException,
)
from ..shortage import shortage
from .address import Address
from .backoff import Backoff, nack_delay
from .delivery import NACK, Delivery, Outcome
from .failure import SessionLost
from .opener import Opener
from .session import Session, Topology
from .state import End, Observer, State, Stats
from .unsettled import Unsettled
from .watch import Watch
from .workers import Pool

__all__ = ["Options", "Supervisor"]

_log = logging.getLogger(__name__)

#: Longest sleep in seconds. pika's poller wakes as often by itself, so shorter costs more
#: and longer saves nothing.
_TURN = 5.0
#: Longest wait, in seconds, for the workers to empty the inbox.
_LINGER = 0.001
#: Longest sleep while draining, where an empty queue is looked for and not waited for.
_DRAIN_TURN = 0.2


class Options(NamedTuple):
    """How the engine behaves.

    Attributes:
        workers: Callbacks that run at the same time.
        nack_initial: Seconds to hold a message's first Nack; 0 is none.
        nack_maximum: Longest hold, seconds.
        remember: Finished messages remembered against a second run.
        limit: Deliveries to work on before stopping; None is no limit.
        drain: Stop once the queues are empty and everything is settled.
        callback_timeout: Seconds after which a running callback is logged; None is never.
    """

    workers: int = 1
    nack_initial: float = 1.0
    nack_maximum: float = 60.0
    remember: int = 20_000
    limit: int | None = None
    drain: bool = False
    callback_timeout: float | None = None


class Supervisor(threading.Thread):
    """Consumes until told to stop, or until something ends it.

    Args:
        addresses: Brokers, tried in turn.
        callback: Takes a Message.
        decode: Makes a Message of a Delivery.
        hire: Makes the workers: takes their number, the callback, `decode` and `post`.
        report: Takes the End, as this thread's last act.
        observers: Follow what happens.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        topology: Topology,
        options: Options,
        callback: Callable[[Any], Any],
        decode: Callable[[Delivery], Any],
        hire: Callable[..., Pool],
        report: Callable[[End], None],
        observers: Sequence[Observer] = (),
        backoff: Backoff | None = None,
    ) -> None:
        super().__init__(name="fmconsume-supervisor", daemon=True)
        self._addresses = list(addresses)
        self._topology = topology
        self._options = options
        self._report = report
        self._backoff = backoff or Backoff()
        #: Counted here, read by any thread.
        self.stats = Stats()
        #: Outcomes, and actions to run here. Filled by any thread.
        self._mailbox: SimpleQueue[Outcome | Callable[[], None]] = SimpleQueue()
        #: Rung by the workers while the supervisor lingers, once they have emptied the inbox.
        self._bell: SimpleQueue[None] = SimpleQueue()
        #: The supervisor waits for the bell. Set here; cleared here, or by whoever rings.
        self._is_lingering = False
        #: What the supervisor takes back out of the inbox never ran.
        self._inbox, self.workers = hire(options.workers, callback, decode, self.post)
        #: The one in use. Set here, read by any thread that posts.
        self._session: Session | None = None
        self._sessions = 0
        self._unsettled = Unsettled(options.remember)
        #: What has come out of the mailbox and is to be done once the broker has been told.
        self._agenda: deque[Callable[[], None]] = deque()
        #: Deliveries that the workers do not have: just come, or beyond the limit until the stop.
        self._waiting: deque[Delivery] = deque()
        limit = math.inf if options.limit is None else options.limit
        #: Outcomes until the limit is reached.
        self._remaining = limit
        #: Deliveries that may still be given to the workers.
        self._budget = limit
        self._watch = Watch(
            observers,
            self.stats,
            self._unsettled,
            self.workers,
            topology.prefetch_count,
            options.callback_timeout,
            lambda: self._inbox.qsize() + len(self._waiting),
        )
        #: Longest sleep, seconds.
        self._turn_seconds = min(_DRAIN_TURN if options.drain else _TURN, self._watch.interval)
        #: `stats.saved` when this session began, until it is told how many were saved since.
        self._saved_before: int | None = None
        #: Set once, and replaced only by an abandonment.
        self._ending: End | None = None
        self._is_abandoned = False

    # -- for other threads -------------------------------------------------

    @property
    def state(self) -> State:
        """Why messages flow, or why they do not. Thread: any."""
        return self._watch.state

    def post(self, item: Outcome | Callable[[], None]) -> None:
        """Hand over an outcome or an action. Thread: any."""
        self._mailbox.put(item)
        session = self._session
        if not self._is_lingering:
            if session is not None:
                session.wake()
        elif not self._inbox.qsize():
            # The workers have nothing more to take.
            self._is_lingering = False
            self._bell.put(None)

    def stop(self) -> None:
        """Stop gracefully. Thread: any."""
        self.post(partial(self._end, None, ExitCode.OK))

    def abandon(self, end: End) -> None:
        """Stop without waiting for callbacks. Thread: any."""
        self.post(partial(self._abandon, end))

    # -- the thread --------------------------------------------------------

    def run(self) -> None:
        """Consume; whatever happens, report the end."""
        started = monotonic()
        try:
            self._supervise()
        except BaseException as exc:
            self._ending = _failure(exc)
        for _ in self.workers:
            self._inbox.put(None)
        assert self._ending is not None
        reason = _name_of(self._ending.error)
        seconds = monotonic() - started
        try:
            self._watch.enter("stopped", f"stopped after {seconds:.1f} s ({reason}): {self.stats}")
        finally:
            self._report(self._ending)

    def _supervise(self) -> None:
        for worker in self.workers:
            worker.start()
        while self._ending is None:
            try:
                session = self._open()
                if session is not None:
                    self._serve(session)
            except SessionLost as exc:
                self._survive(exc)
            except FmconsumeError as exc:
                self._end(exc, _refusal_code(exc))
        if self._is_waiting_for_callbacks:
            self._watch.enter("stopping", f"stopping: {self._unsettled.running} deliveries in hand")
        while self._is_waiting_for_callbacks:
            self._take_one(self._turn_seconds)

    def _open(self) -> Session | None:
        """Open a session with the first address that works; None when told to stop meanwhile.

        Raises:
            SessionLost: No address works now.
            FmconsumeError: No address works, and one of them refuses for good.
        """
        refusals: list[FmconsumeError] = []
        losses: list[SessionLost] = []
        for address in tuple(self._addresses):
            if self._ending is not None:
                return None
            try:
                session = self._open_at(address)
            except FmconsumeError as exc:
                refusals.append(exc)
            except SessionLost as exc:
                losses.append(exc)
            else:
                self._addresses.remove(address)
                self._addresses.insert(0, address)
                return session
        raise (refusals or losses)[0]

    def _open_at(self, address: Address) -> Session | None:
        self._watch.enter("connecting", f"connecting to {address.name}")
        session = Session(self._sessions + 1, address, self._topology, self._sessions > 0)
        opener = Opener(session, lambda: self.post(_nothing))
        opener.start()
        while self._ending is None:
            self._take_one(self._turn_seconds)
            with suppress(Empty):
                return opener.take()
        opener.abandon()
        return None

    def _serve(self, session: Session) -> None:
        """Consume until the end, then wind down; raises SessionLost."""
        self._sessions = session.number
        self.stats.reconnections = self._sessions - 1
        self._unsettled.begin(session.number)
        session.deliver = self._on_delivery
        self._session = session
        session.tick(self._turn_seconds)
        if session.number > 1:
            self._saved_before = self.stats.saved
            session.call_later(_TURN, self._tell_saved)
        began = monotonic()
        try:
            self._consume(session)
            self._wind_down(session)
        except BaseException:
            session.discard()
            raise
        else:
            session.close()
        finally:
            self._session = None
            self._tell_saved()
            if monotonic() - began > _TURN:
                self._backoff.reset()

    def _consume(self, session: Session) -> None:
        self._read_mailbox(session)
        self._watch.enter("consuming", f"consuming from {session.name}")
        while self._ending is None:
            self._turn(session)
            if self._options.drain and self._is_drained(session):
                self._end(None, ExitCode.OK)
            if not session.is_consuming:
                reason = f"the broker cancelled the consumer of queue {session.cancelled_queue}"
                self._end(ConsumerCanceled(reason), ExitCode.CANCELLED)

    def _wind_down(self, session: Session) -> None:
        """Return what never ran, let callbacks finish, settle everything."""
        self._watch.enter("stopping", f"stopping: {self._unsettled.running} deliveries in hand")
        self._return_unstarted()
        session.cancel()
        # What was dispatched while the broker answered.
        self._return_unstarted()
        self._unsettled.release_all()
        while self._is_waiting_for_callbacks:
            self._turn(session)
        self._settle(session)

    def _return_unstarted(self) -> None:
        """Put back in its queue what no worker has begun."""
        not_started = self._take_inbox()
        self.stats.requeued += len(not_started)
        self._unsettled.take_back(not_started)

    def _turn(self, session: Session) -> None:
        """Sleep until something happens, hand out what has come, read the mailbox, settle."""
        self._receive(session)
        self._linger(session)
        if 0 < 2 * len(self._unsettled) < self._topology.prefetch_count:
            # The broker sends the first of many alone; settled alone, it would part the next too.
            self._receive(session, 0)
            self._linger(session)
        self._read_mailbox(session)

    def _receive(self, session: Session, seconds: float | None = None) -> None:
        """Wait for the next event, or so long, and give the workers all that has come together.

        Given one by one, each would wake a thread that cannot run before the wait is over.
        """
        session.wait(seconds)
        while self._waiting and self._budget:
            self._budget -= 1
            self._inbox.put(self._waiting.popleft())

    def _linger(self, session: Session) -> None:
        """Let quick callbacks empty the inbox, so that one frame acknowledges them all."""
        session.is_woken = True  # Nobody has to wake the session meanwhile.
        while self._bell.qsize():
            self._bell.get()  # It rang just after the last lingering was over.
        # Set first: whoever empties the inbox after the look at it has to ring.
        self._is_lingering = True
        if self._inbox.qsize():
            with suppress(Empty):
                self._bell.get(timeout=_LINGER)
        self._is_lingering = False

    def _read_mailbox(self, session: Session) -> None:
        """Settle what the workers have done, and keep account while the broker goes on."""
        # Cleared first: what is put into the mailbox from here on wakes the next wait.
        session.is_woken = False
        while self._mailbox.qsize():
            self._take(self._mailbox.get())
        self._settle(session)
        self._do_agenda()
        self._settle(session)  # Nacks that are not held back.
        self._watch.tick(session if self._ending is None else None)

    def _settle(self, session: Session) -> None:
        frames = self._unsettled.take_frames()
        if frames:
            session.settle(frames)
            # A session counts as good once it got something done, or lived for a while.
            self._backoff.reset()

    def _take_one(self, seconds: float) -> None:
        """Take one item from the mailbox while there is no session, or give up after a while."""
        with suppress(Empty):
            self._take(self._mailbox.get(timeout=max(0.0, min(seconds, self._turn_seconds))))
        self._do_agenda()
        self._watch.tick(None)

    def _is_drained(self, session: Session) -> bool:
        """Tell whether the queues are empty and nothing is unsettled."""
        # Twice: a queue may answer that it is empty before what it gave away has been sent.
        for _ in range(2):
            if len(self._unsettled) or any(session.depths().values()):
                return False
            # What was sent before the answer is here, but not dispatched yet.
            self._receive(session, 0)
        return not len(self._unsettled)

    def _survive(self, loss: SessionLost) -> None:
        """Forget a session and wait before the next one, unless the end has come."""
        self._do_agenda()
        reason = self._explain(loss)
        self._unsettled.lose(self._take_inbox())
        if self._ending is not None:
            _log.warning("connection lost while stopping: %s", reason)
            return
        delay = self._backoff.next()
        self._watch.enter("waiting", f"not consuming: {reason}; reconnecting in {delay:.1f} s")
        deadline = monotonic() + delay
        while self._ending is None and monotonic() < deadline:
            self._take_one(deadline - monotonic())

    def _explain(self, loss: SessionLost) -> str:
        """Add what a person has to change where a slow callback is the likely reason.

        Source: RabbitMQ closes the channel of a delivery that is not acknowledged within
        consumer_timeout, also of one that was only prefetched; pika does not tell us why.
        """
        oldest = self._unsettled.oldest
        if not loss.is_channel_closed or oldest is None:
            return str(loss)
        return (
            f"{loss}; {oldest.name} is unacknowledged for {monotonic() - oldest.received:.0f} s: "
            "if that is longer than RabbitMQ's consumer_timeout (30 minutes by default), raise "
            f"it, or lower qos.prefetch_count ({self._topology.prefetch_count})"
        )

    def _tell_saved(self) -> None:
        """Say once for each reconnection what remembering was good for."""
        if self._saved_before is not None:
            saved, self._saved_before = self.stats.saved - self._saved_before, None
            _log.info("reconnected; %d redelivered messages had run and were not run again", saved)

    @property
    def _is_waiting_for_callbacks(self) -> bool:
        return bool(self._unsettled.running) and not self._is_abandoned

    def _take_inbox(self) -> list[Delivery]:
        """Take back what no worker has begun; it may be given out again."""
        taken: list[Delivery] = []
        with suppress(Empty):
            while True:
                delivery = self._inbox.get_nowait()
                assert delivery is not None
                taken.append(delivery)
        self._budget += len(taken)
        taken += self._waiting
        self._waiting.clear()
        return taken

    # -- events ------------------------------------------------------------

    def _take(self, item: Outcome | Callable[[], None]) -> None:
        if isinstance(item, Outcome):
            item = partial(self._on_outcome, item, self._unsettled.conclude(item))
        self._agenda.append(item)

    def _do_agenda(self) -> None:
        while self._agenda:
            self._agenda.popleft()()

    def _on_delivery(self, delivery: Delivery) -> None:
        self.stats.received += 1
        if self._unsettled.receive(delivery):
            self._waiting.append(delivery)
        else:
            self.stats.saved += 1

    def _on_outcome(self, outcome: Outcome, tag: int | None) -> None:
        """Keep account of an outcome; the tag is what it settles."""
        self._count(outcome)
        self._watch.see(outcome)
        error = outcome.error
        if error is not None:
            code = error.exit_code if isinstance(error, HaltConsumer) else ExitCode.CALLBACK
            self._end(error, code)
        self._unsettled.remember(outcome)
        if outcome.verdict is NACK and tag is not None:
            self._hold(tag, outcome.delivery)
        self._remaining -= 1
        if self._remaining == 0:
            self._end(None, ExitCode.OK)

    def _hold(self, tag: int, delivery: Delivery) -> None:
        """Release a Nack after a while, since RabbitMQ would redeliver the message at once."""
        delay = nack_delay(
            self._options.nack_initial,
            self._options.nack_maximum,
            self._unsettled.count_nack(delivery),
        )
        if delay and self._session is not None and self._ending is None:
            self._session.call_later(delay, partial(self._unsettled.release, tag))
        else:
            self._unsettled.release(tag)

    def _count(self, outcome: Outcome) -> None:
        name = outcome.name
        setattr(self.stats, name, getattr(self.stats, name) + 1)

    def _end(self, error: BaseException | None, exit_code: int) -> None:
        """Begin to stop; the first reason is the one that counts."""
        if self._ending is None:
            self._ending = End(error, exit_code)

    def _abandon(self, end: End) -> None:
        """Stop without waiting for callbacks."""
        if not self._is_abandoned:
            self._is_abandoned = True
            self.stats.abandoned = self._unsettled.running
            self._ending = end


def _failure(exc: BaseException) -> End:
    """Tell a machine that is short of something from a bug."""
    short = shortage(exc)
    if short is not None:
        return End(short, ExitCode.TEMPORARY)
    _log.critical("the supervisor failed, which is a bug", exc_info=exc)
    return End(exc, ExitCode.UNEXPECTED)


def _refusal_code(error: FmconsumeError) -> ExitCode:
    if isinstance(error, BadDeclaration):
        return ExitCode.DECLARATION
    return ExitCode.PERMISSION if isinstance(error, PermissionException) else ExitCode.HANDSHAKE


def _name_of(error: BaseException | None) -> str:
    return "asked to stop" if error is None else type(error).__name__


def _nothing() -> None:
    """Do nothing; arriving in the mailbox is enough to make the supervisor look."""
