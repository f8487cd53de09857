"""The supervisor owns the connection and all state, and decides what happens to each delivery.

It is one thread. Other threads call `post`, `stop` and `abandon`, and may read
`state` and `stats`; everything else belongs to the thread itself.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, Callable, List, NamedTuple, Optional, Sequence, Union

from ..exceptions import (
    BadDeclaration,
    ConsumerCanceled,
    ExitCode,
    FmconsumeError,
    HaltConsumer,
    PermissionException,
)
from .address import Address
from .backoff import Backoff, nack_delay
from .delivery import Delivery, Outcome, Verdict
from .opener import Opener
from .session import Session, SessionLost, Topology
from .unsettled import Unsettled
from .workers import Worker

__all__ = ["End", "Options", "State", "Stats", "Supervisor"]

_log = logging.getLogger(__name__)

#: Longest sleep in seconds. pika's poller wakes as often by itself, so shorter costs more
#: and longer saves nothing.
_TURN = 5.0

class Options(NamedTuple):
    """How the engine behaves.

    Attributes:
        workers: Callbacks that run at the same time.
        nack_initial: Seconds to hold a message's first Nack; 0 is none.
        nack_maximum: Longest hold, seconds.
        remember: Finished messages remembered against a second run.
        limit: Deliveries to work on before stopping; None is no limit.
    """

    workers: int = 1
    nack_initial: float = 1.0
    nack_maximum: float = 60.0
    remember: int = 20_000
    limit: Optional[int] = None


class State(NamedTuple):
    """Why messages flow, or why they do not.

    Attributes:
        name: "connecting", "waiting", "consuming", "blocked", "prefetch full",
            "stopping" or "stopped".
        text: One line for a person.
    """

    name: str
    text: str


class End(NamedTuple):
    """How consuming ended.

    Attributes:
        error: What `consume` raises; None when it returns.
        exit_code: Exit status of the command.
    """

    error: Optional[BaseException]
    exit_code: int


@dataclasses.dataclass
class Stats:
    """Counts of deliveries since the consumer started.

    Attributes:
        received: All of them.
        acknowledged: The callback returned, or halted the consumer.
        requeued: The callback raised Nack, or never saw it before a stop.
        dropped: The callback raised Drop.
        rejected: The body did not decode, or failed its schema.
        failed: The callback raised something else.
        saved: Redeliveries of a message that ran already and did not run again.
        abandoned: Callbacks still running when a second signal came.
        reconnections: Sessions after the first.
    """

    received: int = 0
    acknowledged: int = 0
    requeued: int = 0
    dropped: int = 0
    rejected: int = 0
    failed: int = 0
    saved: int = 0
    abandoned: int = 0
    reconnections: int = 0


class Supervisor(threading.Thread):
    """Consumes until told to stop, or until something ends it.

    Args:
        addresses: Brokers, tried in turn.
        callback: Takes a Message.
        decode: Makes a Message of a Delivery.
        wait_for: Awaits what a coroutine callback returns.
        report: Takes the End, as this thread's last act.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        topology: Topology,
        options: Options,
        callback: Callable[[Any], Any],
        decode: Callable[[Delivery], Any],
        wait_for: Callable[[Any], Any],
        report: Callable[[End], None],
        backoff: Optional[Backoff] = None,
    ) -> None:
        super().__init__(name="fmconsume-supervisor", daemon=True)
        self._addresses = list(addresses)
        self._topology = topology
        self._options = options
        self._report = report
        self._backoff = backoff or Backoff()
        #: Replaced at each change, so that any thread may read it.
        self.state = State("connecting", "connecting")
        #: Counted here, read by any thread.
        self.stats = Stats()
        #: Outcomes, and actions to run here. Filled by any thread.
        self._mailbox: SimpleQueue[Union[Outcome, Callable[[], None]]] = SimpleQueue()
        #: Deliveries for the workers; what the supervisor takes back out never ran.
        self._inbox: SimpleQueue[Optional[Delivery]] = SimpleQueue()
        self.workers = [
            Worker(n + 1, callback, decode, self._inbox, self.post, wait_for)
            for n in range(options.workers)
        ]
        #: The one in use. Set here, read by any thread that posts.
        self._session: Optional[Session] = None
        self._sessions = 0
        self._unsettled = Unsettled(options.remember)
        #: Deliveries beyond the limit; they wait for the stop.
        self._parked: List[Delivery] = []
        #: Outcomes until the limit is reached; None is no limit.
        self._remaining = options.limit
        #: Deliveries that may still be given to the workers; None is no limit.
        self._budget = options.limit
        #: Set once, and replaced only by an abandonment.
        self._ending: Optional[End] = None
        self._is_abandoned = False

    # -- for other threads -------------------------------------------------

    def post(self, item: Union[Outcome, Callable[[], None]]) -> None:
        """Hand over an outcome or an action. Thread: any."""
        self._mailbox.put(item)
        session = self._session
        if session is not None:
            session.wake()

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
            _log.critical("the supervisor failed, which is a bug", exc_info=exc)
            self._ending = End(exc, ExitCode.UNEXPECTED)
        assert self._ending is not None
        self._enter("stopped", _summary(self.stats, monotonic() - started, self._ending))
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
        while self._is_waiting_for_callbacks:
            self._take(self._mailbox.get())
        for _ in self.workers:
            self._inbox.put(None)

    def _open(self) -> Optional[Session]:
        """Open a session with the first address that works; None when told to stop meanwhile.

        Raises:
            SessionLost: No address works now.
            FmconsumeError: No address works, and one of them refuses for good.
        """
        refusals: List[FmconsumeError] = []
        losses: List[SessionLost] = []
        for address in tuple(self._addresses):
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

    def _open_at(self, address: Address) -> Optional[Session]:
        self._enter("connecting", f"connecting to {address.name}")
        session = Session(self._sessions + 1, address, self._topology, self._sessions > 0)
        opener = Opener(session, lambda: self.post(_nothing))
        opener.start()
        while self._ending is None:
            self._take(self._mailbox.get())
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
        try:
            self._consume(session)
            self._wind_down(session)
        finally:
            self._session = None
            session.close()

    def _consume(self, session: Session) -> None:
        self._backoff.reset()
        self._read_mailbox(session)
        while self._ending is None:
            self._turn(session)
            self._show_flow(session)
            if session.cancelled_queue:
                reason = f"the broker cancelled the consumer of queue {session.cancelled_queue}"
                self._end(ConsumerCanceled(reason), ExitCode.CANCELLED)

    def _wind_down(self, session: Session) -> None:
        """Return what never ran, let callbacks finish, settle everything."""
        self._enter("stopping", f"stopping: {self._unsettled.running} deliveries in hand")
        session.cancel()
        not_started = self._take_inbox()
        self.stats.requeued += len(not_started)
        self._unsettled.take_back(not_started)
        self._unsettled.release_all()
        while self._is_waiting_for_callbacks:
            self._turn(session)
        session.settle(self._unsettled.take_frames())

    def _turn(self, session: Session) -> None:
        """Sleep until something happens, read the mailbox, settle."""
        session.wait(_TURN)
        session.check()
        self._read_mailbox(session)

    def _read_mailbox(self, session: Session) -> None:
        # Cleared first: what is put into the mailbox from here on wakes the next wait.
        session.is_woken = False
        with suppress(Empty):
            while True:
                self._take(self._mailbox.get_nowait())
        session.settle(self._unsettled.take_frames())

    def _survive(self, loss: SessionLost) -> None:
        """Forget a session and wait before the next one, unless the end has come."""
        self._unsettled.lose(self._take_inbox())
        if self._ending is not None:
            _log.warning("connection lost while stopping: %s", loss)
            return
        delay = self._backoff.next()
        self._enter("waiting", f"not consuming: {loss}; reconnecting in {delay:.1f} s")
        deadline = monotonic() + delay
        with suppress(Empty):
            while self._ending is None:
                self._take(self._mailbox.get(timeout=max(0.0, deadline - monotonic())))

    @property
    def _is_waiting_for_callbacks(self) -> bool:
        return bool(self._unsettled.running) and not self._is_abandoned

    def _take_inbox(self) -> List[Delivery]:
        """Take back what no worker has begun."""
        taken, self._parked = self._parked, []
        with suppress(Empty):
            while True:
                delivery = self._inbox.get_nowait()
                assert delivery is not None
                taken.append(delivery)
        return taken

    # -- events ------------------------------------------------------------

    def _take(self, item: Union[Outcome, Callable[[], None]]) -> None:
        if isinstance(item, Outcome):
            self._on_outcome(item)
        else:
            item()

    def _on_delivery(self, delivery: Delivery) -> None:
        self.stats.received += 1
        if not self._unsettled.receive(delivery):
            self.stats.saved += 1
        elif self._budget == 0:
            self._parked.append(delivery)
        else:
            if self._budget is not None:
                self._budget -= 1
            self._inbox.put(delivery)

    def _on_outcome(self, outcome: Outcome) -> None:
        self._count(outcome)
        tag = self._unsettled.conclude(outcome)
        error = outcome.error
        if error is not None:
            code = error.exit_code if isinstance(error, HaltConsumer) else ExitCode.CALLBACK
            self._end(error, code)
        elif outcome.verdict is Verdict.NACK and tag is not None and self._ending is None:
            self._hold(tag, outcome.delivery)
        if self._remaining is not None:
            self._remaining -= 1
            if self._remaining == 0:
                self._end(None, ExitCode.OK)

    def _hold(self, tag: int, delivery: Delivery) -> None:
        """Keep a Nack back, since RabbitMQ would redeliver the message at once."""
        delay = nack_delay(
            self._options.nack_initial,
            self._options.nack_maximum,
            self._unsettled.count_nack(delivery),
        )
        if delay and self._session is not None:
            self._unsettled.hold(tag)
            self._session.call_later(delay, partial(self._unsettled.release, tag))

    def _count(self, outcome: Outcome) -> None:
        error = outcome.error
        if error is not None and not isinstance(error, HaltConsumer):
            self.stats.failed += 1
        else:
            name = _COUNTERS[outcome.verdict]
            setattr(self.stats, name, getattr(self.stats, name) + 1)

    def _end(self, error: Optional[BaseException], exit_code: int) -> None:
        """Begin to stop; the first reason is the one that counts."""
        if self._ending is None:
            self._ending = End(error, exit_code)

    def _abandon(self, end: End) -> None:
        """Stop without waiting for callbacks."""
        if not self._is_abandoned:
            self._is_abandoned = True
            self.stats.abandoned = self._unsettled.running
            self._ending = end

    # -- what a person sees ------------------------------------------------

    def _enter(self, name: str, text: str) -> None:
        """Change the state; each change is one log line."""
        if name != self.state.name or name == "connecting":
            level = logging.WARNING if name in _TROUBLE else logging.INFO
            _log.log(level, "%s", text)
            self.state = State(name, text)

    def _show_flow(self, session: Session) -> None:
        """Say why messages flow or do not."""
        if session.blocked:
            self._enter("blocked", f"the broker blocks publishers: {session.blocked}")
        else:
            queues = ", ".join(session.consumers.values())
            self._enter("consuming", f"consuming from {queues} at {session.address.name}")


#: States in which somebody may have to act.
_TROUBLE = {"waiting", "blocked", "prefetch full"}

_COUNTERS = {
    Verdict.ACK: "acknowledged",
    Verdict.NACK: "requeued",
    Verdict.DROP: "dropped",
    Verdict.REJECT: "rejected",
}


def _refusal_code(error: FmconsumeError) -> ExitCode:
    if isinstance(error, BadDeclaration):
        return ExitCode.DECLARATION
    return (
        ExitCode.PERMISSION if isinstance(error, PermissionException) else ExitCode.HANDSHAKE
    )


def _summary(stats: Stats, seconds: float, end: End) -> str:
    counts = ", ".join(f"{name} {n}" for name, n in dataclasses.asdict(stats).items() if n)
    reason = "asked to stop" if end.error is None else f"{type(end.error).__name__}: {end.error}"
    return f"stopped after {seconds:.1f} s ({reason}): {counts or 'nothing received'}"


def _nothing() -> None:
    """Do nothing; arriving in the mailbox is enough to make the supervisor look."""
