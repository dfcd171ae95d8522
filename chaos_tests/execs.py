"""Many short processes under restarts: exactly one right exit record for each of them.

    python -m chaos_tests.execs --execs 100000 --seed 7

A few containers run; in each, 32 execs at a time are added, started, waited for and deleted, each
with a status of its own. Every ten seconds the daemon is killed with SIGKILL and started again.
A reader of the event log, which comes back after each death with its last sequence, counts.
"""

import argparse
import json
import math
import random
import secrets
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import trio

from holdfast.actors.errors import AlreadyExists, FailedPrecondition, NotFound
from holdfast.api.proto.services import tasks_pb2 as tasks

from . import nemeses
from .client import NOTHING, PAUSE_S
from .containers import brief, process
from .history import History
from .isolation import House, house
from .processes import Role
from .workloads import SPEC_URL, Life, Stage

CONTAINERS = 2
CONCURRENT = 32
RESTART_EVERY_S = 10.0
STATUSES = range(120)
COUNTED_WITHIN_S = 60.0


@dataclass(slots=True)
class Campaign:
    """One run: what was chosen, what the log has told, what was told wrong."""

    home: House
    execs: int
    dice: random.Random
    restart_every_s: float = RESTART_EVERY_S
    chosen: dict[str, int] = field(default_factory=dict[str, int])
    exits: Counter[str] = field(default_factory=Counter[str])
    wrong: list[str] = field(default_factory=list[str])
    restarts: int = 0

    async def run(self) -> None:
        """All of them, while the daemon dies again and again."""
        stage = Stage()
        lives = [self._life(f"box-{number}", stage) for number in range(CONTAINERS)]
        async with trio.open_nursery() as nursery:
            for life in lives:
                nursery.start_soon(life.run, math.inf)
            for life in lives:
                await life.reached.wait()
            nursery.start_soon(self._count)
            await self._ask_all([life.plan.name for life in lives])
            with trio.move_on_after(COUNTED_WITHIN_S):
                while len(self.exits) < len(self.chosen):  # noqa: ASYNC110 - a log, not an event
                    await trio.sleep(PAUSE_S)
            stage.struck.set()
            stage.healed.set()
            while any(life.is_running for life in lives):  # noqa: ASYNC110 - any of many
                await trio.sleep(PAUSE_S)
            nursery.cancel_scope.cancel()
        for life in lives:
            await life.give_up()

    def faults(self) -> list[str]:
        """What is not as it must be; nothing, when all is well."""
        lost = [f"{name}: no exit record" for name in self.chosen if not self.exits[name]]
        twice = [f"{name}: {n} exit records" for name, n in self.exits.items() if n > 1]
        return [*self.wrong, *lost, *twice]

    def _life(self, name: str, stage: Stage) -> Life:
        home = self.home
        return Life(home.client, brief(name), home.folder, home.group, stage)

    async def _ask_all(self, boxes: list[str]) -> None:
        names = iter([f"x{number}" for number in range(self.execs)])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._restart)
            async with trio.open_nursery() as workers:
                for box in boxes:
                    for _ in range(CONCURRENT):
                        workers.start_soon(self._work, box, names)
            nursery.cancel_scope.cancel()

    async def _restart(self) -> None:
        daemon = self.home.daemon
        while True:
            await trio.sleep(self.restart_every_s)
            nemeses.kill(daemon.processes(Role.DAEMON), signal.SIGKILL)
            await daemon.wait_gone()
            await daemon.start()
            self.restarts += 1
            self.home.history.records.clear()  # the log is what is judged here

    async def _work(self, box: str, names: Iterator[str]) -> None:
        for name in names:
            status = self.chosen[name] = self.dice.choice(STATUSES)
            await self._add(box, name, status)
            await self._start(box, name)
            told = await self._wait(box, name)
            if told not in (status, None):
                self.wrong.append(f"{name}: Wait told {told}, chosen was {status}")
            await self._delete(box, name)

    async def _add(self, box: str, name: str, status: int) -> None:
        request = tasks.ExecProcessRequest(container_id=box, exec_id=name)
        request.spec.type_url = SPEC_URL.replace("/Spec", "/Process")
        words = ["sh", "-c", f"exit {status}"]
        request.spec.value = json.dumps(process(words)).encode()
        try:
            await self.home.client.insist("Tasks.Exec", request, NOTHING)
        except AlreadyExists:
            pass  # an earlier ask took effect

    async def _start(self, box: str, name: str) -> None:
        request = tasks.StartRequest(container_id=box, exec_id=name)
        try:
            await self.home.client.insist("Tasks.Start", request, tasks.StartResponse)
        except FailedPrecondition:
            pass  # an earlier ask took effect

    async def _wait(self, box: str, name: str) -> int | None:
        request = tasks.WaitRequest(container_id=box, exec_id=name)
        answer = await self.home.client.insist(
            "Tasks.Wait", request, tasks.WaitResponse, within_s=None
        )
        return answer.exit_status

    async def _delete(self, box: str, name: str) -> None:
        request = tasks.DeleteProcessRequest(container_id=box, exec_id=name)
        try:
            await self.home.client.insist("Tasks.DeleteProcess", request, tasks.DeleteResponse)
        except NotFound:
            pass  # an earlier ask took effect

    async def _count(self) -> None:
        """Hear every exit once, through all deaths; a hole in the log is a fault."""
        last = 0
        async for event in self.home.client.follow():
            if event.lost_from is not None or (last and event.sequence != last + 1):
                self.wrong.append(f"the log has a hole before {event.sequence}")
            last = event.sequence
            if event.topic == "/tasks/exit" and event.exec_id:
                self.exits[event.exec_id] += 1
                if event.status != self.chosen.get(event.exec_id):
                    text = f"{event.exec_id}: told {event.status}, chosen was another"
                    self.wrong.append(text)


async def run_campaign(
    base: Path, execs: int, seed: int, restart_every_s: float = RESTART_EVERY_S
) -> Campaign:
    """A whole run below `base`."""
    history = History(seed=seed)
    async with house(base, history) as home:
        campaign = Campaign(home, execs, random.Random(seed), restart_every_s)
        await campaign.run()
        history.records.clear()
    campaign.wrong += [str(record) for record in history.records]  # what is left on the host
    return campaign


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--execs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32))
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="holdfast-execs-") as folder:
        campaign = trio.run(run_campaign, Path(folder), given.execs, given.seed)
    faults = campaign.faults()
    print(*faults, sep="\n")
    print(
        f"{given.execs} execs, {campaign.restarts} restarts, {sum(campaign.exits.values())} exit"
        f" records, {len(faults)} faults, {time.monotonic() - began_s:.0f} s, seed {given.seed}"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
