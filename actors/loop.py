"""The loop: what one actor does from its first moment to its last.

    on_start --> receive ... receive --> on_stop --> finish
       |            |                       |           ^
       +-- raises --+-- raises, is killed --+-----------+

It is total: whatever happens, `Cell.finish` runs, and nothing but an outer cancellation leaves.
"""

import logging
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final, cast

import trio

from .cell import Cell, current_cell, handling_cell
from .errors import Refusal
from .exits import KILLED, NO_ANSWER, NORMAL, ActorExited, Exit, Kind, StopActor
from .logger import get_logger
from .mailbox import refuse
from .message import Down, ExitSignal, Resume, SetTrace, Shutdown, Suspend, SystemMessage
from .pykka_compat import PYKKA_MESSAGES, Envelope, Stop

if TYPE_CHECKING:
    from .actor import Actor

log = get_logger(__name__)
pykka_log = logging.getLogger(__name__)  # for the lines that pykka has, in its words

BUDGET: Final = 64
"""Messages between two yields to the loop, so that a flooded actor starves nobody."""

_OUTER_CANCEL: Final = Exit(Kind.KILLED, "outer cancel")


class Postpone(Exception):
    """Raised in a handler to have the message again after the next `mailbox.release()`."""


@trio.lowlevel.enable_ki_protection
async def run(actor: "Actor", cell: Cell) -> None:
    """Be the actor's task."""
    current_cell.set(cell)
    handling_cell.set(cell)
    reason = NORMAL
    try:
        with trio.CancelScope() as scope:
            cell.scope = scope
            if cell.kill_reason is not None:
                scope.cancel()
            reason = await _life_with_children(actor, cell)
        if scope.cancelled_caught:
            reason = cell.kill_reason or KILLED
    except trio.Cancelled:
        reason = cell.kill_reason or _OUTER_CANCEL
        raise
    except StopActor as stop:
        reason = stop.reason
    except BaseExceptionGroup as error:
        if error.split(trio.Cancelled)[1] is None:  # an outer scope's, and nothing else
            reason = cell.kill_reason or _OUTER_CANCEL
            raise
        reason = actor.classify(error)
    except BaseException as error:
        reason = actor.classify(error)
    finally:
        if cell.tasks:
            await cell.end_tasks()
        cell.finish(reason)


async def _life_with_children(actor: "Actor", cell: Cell) -> Exit:
    """Where the actor hosts children, they run within its own scope and end before it."""
    if not actor.hosts_children:
        return await _life(actor, cell)
    try:
        async with trio.open_nursery() as cell.nursery:
            try:
                return await _life(actor, cell)
            finally:
                cell.nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:  # the nursery's wrapping, not ours
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None
        raise


async def _life(actor: "Actor", cell: Cell) -> Exit:
    started: Any = actor.on_start()
    if type(started) is CoroutineType:
        await started
    await trio.lowlevel.checkpoint()
    if cell.started is not None:
        cell.started.set(None)
    try:
        reason = await _receive(actor, cell)
    except StopActor as stop:
        reason = stop.reason
    except BaseExceptionGroup as error:
        stopped = _only_stops(error)
        if stopped is None:
            raise
        reason = stopped.reason
    _answer_current(cell, reason)
    cell.ref.actor_stopped.set()
    stopped_hook: Any = actor.on_stop()
    if type(stopped_hook) is CoroutineType:
        await stopped_hook
    return reason


def _answer_current(cell: Cell, reason: Exit) -> None:
    """A message that ended the actor in order leaves no one waiting through on_stop."""
    envelope, cell.current = cell.current, None
    if envelope is not None:
        refuse(envelope, ActorExited(cell.ref, reason))


def _only_stops(group: BaseExceptionGroup[BaseException]) -> StopActor | None:
    """The stop in a group that holds nothing else."""
    stops, rest = group.split(StopActor)
    if stops is None or rest is not None:
        return None
    inner: BaseException = stops
    while isinstance(inner, BaseExceptionGroup):
        inner = cast("BaseExceptionGroup[BaseException]", inner).exceptions[0]
    assert isinstance(inner, StopActor)
    return inner


async def _receive(actor: "Actor", cell: Cell) -> Exit:
    """Handle messages, the system lane first, one at a time."""
    box = cell.mailbox
    user = box.user
    handle = handler_of(actor, cell)
    now_s = trio.current_time
    left = BUDGET
    # One that waits for its next message must not hold on to its last: a Down's exception holds
    # the frames, and so the whole state, of the actor that died.
    order: SystemMessage | None = None
    envelope: Envelope[Any] | None = None
    message: Any = None
    reply: Any = None
    answer: Any = None
    while True:
        if box.system:
            order = box.system.popleft()
            if isinstance(order, Shutdown):
                return order.reason
            await _handle_system(actor, cell, order)
            handle = handler_of(actor, cell)
        elif user and not cell.suspended:
            envelope = user.popleft()
            if box.waiting is not None:
                box.admit()
            message = envelope.message
            reply = envelope.reply_to
            if type(message) is Stop:
                if reply is not None:
                    cell.stopping = [envelope]
                return NORMAL
            if reply is not None and getattr(reply, "withdrawn", False):
                continue
            cell.current = envelope
            try:
                answer = handle(message)
                if type(answer) is CoroutineType:
                    cell.current_since_s = now_s()
                    answer = await cast("Any", answer)
            except Refusal as refusal:
                _refuse_current(cell, envelope, refusal)
            except Postpone:
                _postpone(cell, envelope)
            except StopActor as stop:
                if reply is not None and stop.answer is not NO_ANSWER:
                    cell.current = None
                    reply.set(stop.answer)
                raise
            except Exception as error:
                if reply is None or not actor.pykka_rules:
                    raise
                pykka_log.info("Exception returned from %s to caller:", actor, exc_info=error)
                reply.set_exception()
            else:
                if reply is not None:
                    reply.set(answer)
            cell.current = None
            cell.handled += 1
        else:
            left = BUDGET
            order = envelope = message = reply = answer = None
            await box.park()
            continue
        left -= 1
        if left <= 0:
            left = BUDGET
            await trio.lowlevel.checkpoint()


def handler_of(actor: "Actor", cell: Cell) -> Any:
    """What handles the next messages; a trace costs nothing while there is none."""
    receive = actor.on_receive

    def handle(message: Any) -> Any:
        if type(message) in PYKKA_MESSAGES:
            return actor.handle_pykka_message(message)
        return receive(message)

    sink = cell.trace
    if sink is None:
        return handle

    def handle_traced(message: Any) -> Any:
        sink(message)
        return handle(message)

    return handle_traced


def _refuse_current(cell: Cell, envelope: Envelope[Any], refusal: Refusal) -> None:
    """A refusal is an answer; where nobody asked, it is only worth a line."""
    if envelope.reply_to is not None:
        envelope.reply_to.set_exception((type(refusal), refusal, refusal.__traceback__))
    else:
        _log_refusal(cell, envelope.message, refusal)


def _postpone(cell: Cell, envelope: Envelope[Any]) -> None:
    try:
        cell.mailbox.hold(envelope)
    except Refusal as refusal:
        _refuse_current(cell, envelope, refusal)


async def _handle_system(actor: "Actor", cell: Cell, message: SystemMessage) -> None:
    result: Any = None
    try:
        match message:
            case Down():
                if cell.watching is not None:
                    cell.watching.discard(message.monitor)
                result = actor.on_down(message)
            case ExitSignal():
                result = actor.on_exit(message)
            case Suspend():
                cell.suspended = True
            case Resume():
                cell.suspended = False
            case SetTrace():
                cell.trace = message.sink
            case Shutdown():
                raise AssertionError("the loop ends on Shutdown")
        if type(result) is CoroutineType:
            await result
    except Refusal as refusal:
        _log_refusal(cell, message, refusal)


def _log_refusal(cell: Cell, message: Any, refusal: Refusal) -> None:
    kind = type(message).__name__
    log.debug("actor.refused", actor=str(cell), message_type=kind, reason=str(refusal))
