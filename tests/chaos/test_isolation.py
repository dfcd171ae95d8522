"""What hangs, crashes or is full costs its own container only; the others do not feel it."""

import re
from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from google.protobuf.message import Message

from holdfast.actors.errors import NotFound, Refusal, ResourceExhausted
from holdfast.api.proto import transfer_types_pb2 as types
from holdfast.api.proto.services import leases_pb2, namespaces_pb2, snapshots_pb2, transfer_pb2
from holdfast.api.streams import packed
from holdfast.chaos import checkers, nemeses
from holdfast.chaos.client import NOTHING
from holdfast.chaos.containers import LINES_OF_A_CHATTERER, Plan, brief
from holdfast.chaos.history import Call, History, Process, Visible
from holdfast.chaos.isolation import House, blocked, house, neighbours, see, victim_of
from holdfast.chaos.processes import Role
from holdfast.chaos.workloads import SNAPSHOTTER

pytestmark = [pytest.mark.root, pytest.mark.slow]

VICTIM = "victim"
NEIGHBOURS = 3
DISK_BYTES = 48 << 20


async def judged(home: House, *but: str) -> list[str]:
    """What the judges find, when all is over; the victim's own troubles are no matter."""
    for event in await home.client.events():
        home.history.add(event)
    return [
        str(found)
        for found in checkers.judge(home.history)
        if re.split("[/ ]", found.subject)[0] != VICTIM and found.invariant not in but
    ]


async def suffer(home: House, plan: Plan, nemesis: AbstractContextManager[object]) -> list[str]:
    """A victim under a nemesis, neighbours beside it; what the judges say."""
    async with victim_of(home, plan) as (life, stage):
        with nemesis:
            stage.struck.set()
            harm = "hung-mount" if not plan.runtime else "hang-runtime"
            await see(home, harm, VICTIM)
            await neighbours(home, NEIGHBOURS)
            assert not life.begun.is_set(), life.refusal  # it hangs still, else nothing was shown
    assert life.refusal is not None
    assert len(list(home.history.of(Process))) == NEIGHBOURS
    assert len(list(home.history.of(Visible))) == 1
    await neighbours(home, 1)
    return await judged(home)


async def test_a_runtime_that_hangs_costs_its_own_container_only(tmp_path: Path) -> None:
    history = History()
    runtime = nemeses.Runtime(tmp_path / "runtime")
    plan = replace(brief(VICTIM), runtime=str(runtime.path))
    async with house(tmp_path, history) as home:
        assert not await suffer(home, plan, runtime.hanging(history, [VICTIM]))
    assert not list(checkers.nothing_is_left(history))


async def test_a_mount_that_never_answers_costs_the_container_that_has_it(tmp_path: Path) -> None:
    history = History()
    hung = tmp_path / "hung"
    plan = replace(brief(VICTIM), bind=str(hung / "below"))
    async with house(tmp_path, history) as home:
        assert not await suffer(home, plan, nemeses.hung_mount(history, hung, [VICTIM]))
    assert not list(checkers.nothing_is_left(history))


async def test_a_layer_that_never_answers_costs_the_container_that_has_it(tmp_path: Path) -> None:
    history = History()
    hung = tmp_path / "hung"
    plan = replace(brief(VICTIM), layer=str(hung))
    async with house(tmp_path, history) as home:
        assert not await suffer(home, plan, nemeses.hung_mount(history, hung, [VICTIM]))
    assert not list(checkers.nothing_is_left(history))


async def test_a_runtime_that_crashes_costs_its_own_container_only(tmp_path: Path) -> None:
    history = History()
    runtime = nemeses.Runtime(tmp_path / "runtime")
    plan = replace(brief(VICTIM), runtime=str(runtime.path))
    async with house(tmp_path, history) as home:
        async with victim_of(home, plan) as (life, stage):
            with runtime.crashing(history):
                stage.struck.set()
                await neighbours(home, NEIGHBOURS)
                await life.begun.wait()
        assert isinstance(life.refusal, Refusal)
        assert not await judged(home)
    assert not list(checkers.nothing_is_left(history))


async def test_a_logger_that_never_reads_costs_the_container_that_has_it(tmp_path: Path) -> None:
    history = History()
    loggers = tmp_path / "loggers"
    deaf = nemeses.deaf_logger(loggers / "deaf")
    # More than its FIFOs hold, so that it stands still.
    plan = replace(brief(VICTIM), log=deaf, lines_before=LINES_OF_A_CHATTERER)
    async with house(tmp_path, history, settings=f'log_binaries = "{loggers}"\n') as home:
        with nemeses.harming(history, "deaf-logger", [VICTIM], shown=False):
            async with blocked(home, plan):
                await neighbours(home, NEIGHBOURS)
                # One that adopts finds the same.
                nemeses.kill(home.daemon.processes(Role.SHIM))
                await neighbours(home, 1)
        assert not await judged(home)
    assert not list(checkers.nothing_is_left(history))
    deletes = [c for c in history.of(Call) if (c.verb, c.subject) == ("Tasks.Delete", VICTIM)]
    assert [call.outcome for call in deletes] == ["ok"]


async def test_a_proxy_plugin_that_hangs_costs_the_requests_to_it(tmp_path: Path) -> None:
    history = History()
    with nemeses.silent_server(history, tmp_path / "hung.sock", [VICTIM]) as address:
        settings = f'[proxy_plugins.hung]\ntype = "snapshot"\naddress = "{address}"\n'
        async with house(tmp_path, history, settings=settings) as home:
            request = snapshots_pb2.PrepareSnapshotRequest(snapshotter="hung", key=VICTIM)
            async with asked(
                home, "Snapshots.Prepare", request, snapshots_pb2.PrepareSnapshotResponse
            ):
                await neighbours(home, NEIGHBOURS)
            # Nor does a start wait for it, or an end.
            await home.daemon.stop()
            await home.daemon.start()
            await neighbours(home, 1)
            assert not await judged(home)
    assert not list(checkers.nothing_is_left(history))


async def test_a_registry_that_stalls_costs_the_pull_from_it(tmp_path: Path) -> None:
    history = History()
    with nemeses.silent_server(history, subjects=[VICTIM]) as address:
        async with house(tmp_path, history) as home:
            place = types.OCIRegistry(reference=f"{address}/library/busybox:latest")
            place.resolver.default_scheme = "http"
            request = transfer_pb2.TransferRequest(
                source=packed(place), destination=packed(types.ImageStore(name="busybox"))
            )
            async with asked(home, "Transfer.Transfer", request, NOTHING):
                await neighbours(home, NEIGHBOURS)
            await home.daemon.stop()
            await home.daemon.start()
            await neighbours(home, 1)
            assert not await judged(home)
    assert not list(checkers.nothing_is_left(history))


@asynccontextmanager
async def asked(
    home: House, verb: str, request: Message, answer_type: type[Any]
) -> AsyncGenerator[None]:
    """Something is asked for the time of a block, and gets no answer in it."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            partial(home.client.ask, verb, request, answer_type, subject=VICTIM, within_s=None)
        )
        yield
        [task] = nursery.child_tasks
        assert task
        nursery.cancel_scope.cancel()
    [call] = [call for call in home.history.of(Call) if call.subject == VICTIM]
    assert (call.verb, call.outcome) == (verb, "Abandoned")


async def test_on_a_full_disk_containers_end_and_go_and_garbage_is_collected(
    tmp_path: Path,
) -> None:
    history = History()
    with nemeses.small_disk(tmp_path / "disk", DISK_BYTES) as disk:
        async with house(tmp_path, history, root=disk) as home:
            async with victim_of(home, brief(VICTIM)) as (life, stage):
                stage.struck.set()
                await life.begun.wait()
                await lease_with_a_snapshot(home)
                with nemeses.full_disk(history, disk):
                    await life.give_up()
                    await collect_the_lease(home)
                    with pytest.raises(NotFound):
                        await mounts_of(home, "leased")
            await room_again(home)
            await neighbours(home, 1)
            assert not await judged(home)
    assert any(call.verb == "Leases.Delete" for call in history.of(Call))
    assert not list(checkers.nothing_is_left(history))


async def lease_with_a_snapshot(home: House) -> None:
    """A snapshot that a lease alone keeps."""
    client = home.client
    await client.ask(
        "Leases.Create", leases_pb2.CreateRequest(id="keeper"), leases_pb2.CreateResponse
    )
    await client.ask(
        "Snapshots.Prepare",
        snapshots_pb2.PrepareSnapshotRequest(snapshotter=SNAPSHOTTER, key="leased"),
        snapshots_pb2.PrepareSnapshotResponse,
    )
    resource = leases_pb2.Resource(id="leased", type=f"snapshots/{SNAPSHOTTER}")
    request = leases_pb2.AddResourceRequest(id="keeper", resource=resource)
    await client.ask("Leases.AddResource", request, NOTHING)


async def collect_the_lease(home: House) -> None:
    """With the lease goes, before the answer, what it alone kept."""
    request = leases_pb2.DeleteRequest(id="keeper", sync=True)
    with trio.fail_after(20):
        await home.client.ask("Leases.Delete", request, NOTHING)


async def room_again(home: House) -> None:
    """Return when the store has its own space back, and takes new records."""
    request = namespaces_pb2.CreateNamespaceRequest(
        namespace=namespaces_pb2.Namespace(name="probe")
    )
    with trio.fail_after(10):
        while True:
            try:
                await home.client.ask(
                    "Namespaces.Create", request, namespaces_pb2.CreateNamespaceResponse
                )
                return
            except ResourceExhausted:
                await trio.sleep(0.1)


async def mounts_of(home: House, key: str) -> None:
    """Refused with NotFound when there is no such snapshot."""
    await home.client.ask(
        "Snapshots.Mounts",
        snapshots_pb2.MountsRequest(snapshotter=SNAPSHOTTER, key=key),
        snapshots_pb2.MountsResponse,
    )
