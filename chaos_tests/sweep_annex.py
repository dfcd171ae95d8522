"""The operations of the parts beside records and tasks: who restarts, sandboxes, activated mounts,
the differ, transfers, images, proxied snapshots, loggers, foreign shims, a collection that is under
way."""

import hashlib
import json
import tarfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from io import BytesIO
from pathlib import Path

import trio

from holdfast.actors.errors import FailedPrecondition, NotFound
from holdfast.api.cli.session import Session
from holdfast.api.grpc.client import Channel
from holdfast.api.proto.task_types_pb2 import RUNNING
from holdfast.runtime.restartpolicy import COUNT, STATUS

from . import sweep_asks as asks
from . import sweep_box as box
from . import sweep_images as images
from . import sweep_pods as pods
from . import sweep_sources as sources
from . import sweep_transfers as transfers
from .sweep_operation import Operation
from .sweep_view import SNAPSHOTTER, THEIRS, snapshots_of

TAG = "docker.io/library/tagged:latest"
MANY = "docker.io/library/many:latest"
OBJECTS = 200
LINES = 3000
CAPPED = "max-size=4096&max-files=9999"
LOOK_S = 0.02
LEFT_WITHIN_S = 8.0


def operations(other: Path, other_name: str) -> Sequence[Operation]:
    """These operations. `other` is the archive of an image of that name, in the directory of the
    daemon."""
    base = other.parent
    log = base / "logs" / "box"
    start_theirs, forget_theirs = partial(_start_theirs, base), partial(_forget_theirs, base)
    shim = [_under_foreign_shim(base)] if pods.SHIM else []
    return [
        Operation(
            name="restart after an exit",
            before=[_create_kept, box.create_task, box.start],
            work=[_end_once],
            after=[_restart_no_more, box.discard],
            programs=("daemon", "shim", "fork-server"),
        ),
        Operation(
            name="sandbox",
            work=[
                pods.record_sandbox,
                pods.create_sandbox,
                _start_sandbox,
                pods.stop_sandbox,
                pods.shut_sandbox_down,
                pods.forget_sandbox,
            ],
            after=[pods.shut_sandbox_down, pods.forget_sandbox],
            programs=("daemon", "shim", "fork-server"),
        ),
        Operation(
            name="mount activate",
            work=[lambda s: pods.activate(s, base / "root/disk")],
            after=[pods.deactivate],
            programs=("daemon", "worker"),
        ),
        Operation(
            name="mount deactivate",
            before=[lambda s: pods.activate(s, base / "root/disk")],
            work=[pods.deactivate],
            programs=("daemon", "worker"),
        ),
        Operation(
            name="diff",
            before=[lambda s: asks.prepare(s, "work", ""), lambda s: pods.fill(s, "work")],
            work=[lambda s: pods.diff(s, "work")],
            after=[pods.delete_layers, lambda s: asks.remove_snapshot(s, "work")],
            programs=("daemon", "worker"),
        ),
        Operation(
            name="transfer tag",
            work=[lambda s: transfers.tag(s, box.IMAGE, TAG)],
            after=[lambda s: asks.remove_image(s, TAG)],
        ),
        Operation(
            name="transfer import",
            work=[lambda s: transfers.take_in(s, other)],
            after=[lambda s: asks.remove_image(s, other_name)],
        ),
        Operation(
            name="transfer pull",
            work=[lambda s: transfers.pull(s, sources.registry(other), other_name)],
            after=[lambda s: asks.remove_image(s, other_name)],
            resumes=True,
        ),
        Operation(
            name="proxied snapshot prepare",
            before=[start_theirs],
            work=[lambda s: asks.prepare(s, "work", "", THEIRS)],
            after=[lambda s: asks.remove_snapshot(s, "work", THEIRS), forget_theirs],
        ),
        Operation(
            name="proxied snapshot commit",
            before=[start_theirs, lambda s: asks.prepare(s, "work", "", THEIRS)],
            work=[lambda s: asks.commit(s, "fixed", "work", THEIRS)],
            after=[
                lambda s: asks.remove_snapshot(s, "work", THEIRS),
                lambda s: asks.remove_snapshot(s, "fixed", THEIRS),
                forget_theirs,
            ],
        ),
        Operation(
            name="proxied snapshot remove",
            before=[start_theirs, lambda s: asks.prepare(s, "work", "", THEIRS)],
            work=[lambda s: asks.remove_snapshot(s, "work", THEIRS)],
            after=[forget_theirs],
        ),
        *shim,
        *images.operations(other_name),
        Operation(
            name="run with a capped log",
            before=[_create_talker],
            work=[partial(_create_logged, log), box.start, box.wait],
            after=[box.discard],
            programs=("daemon", "shim", "logger"),
            left=partial(_unlogged, log),
        ),
        Operation(
            name="task delete, with a capped log",
            before=[_create_talker, partial(_create_logged, log), box.start, box.wait],
            work=[box.delete_task],
            after=[box.discard],
            programs=("daemon", "shim"),
            left=partial(_unlogged, log),
        ),
        Operation(
            name="image remove, of many objects",
            before=[lambda s: asks.import_image(s, _many(base), unpack=False)],
            work=[lambda s: asks.remove_image(s, MANY)],
        ),
    ]


# -- the restart monitor


async def _create_kept(session: Session) -> None:
    words = ("sleep", "100000")
    await asks.create_container(session, box.BOX, box.IMAGE, *words, labels={STATUS: "running"})


async def _end_once(session: Session) -> None:
    """Let it end, unless it has once; return when it runs anew."""
    if not await _count(session) and (await session.task(box.BOX)).process.status == RUNNING:
        await asks.kill(session, box.BOX)
    while True:
        with suppress(NotFound):
            task = await session.task(box.BOX)
            if await _count(session) and task.process.status == RUNNING:
                return
        await trio.sleep(LOOK_S)


async def _count(session: Session) -> str:
    return (await session.container(box.BOX)).labels.get(COUNT, "")


async def _restart_no_more(session: Session) -> None:
    with suppress(NotFound):
        await asks.label_container(session, box.BOX, {})


# -- sandboxes


async def _start_sandbox(session: Session) -> None:
    with suppress(FailedPrecondition):  # it runs, or has ended by now
        await pods.start_sandbox(session)


# -- proxied snapshots


async def _start_theirs(base: Path, session: Session) -> None:
    _ = session
    await trio.to_thread.run_sync(sources.containerd, base)


async def _forget_theirs(base: Path, session: Session) -> None:
    """Nothing of the other side's is left, once it could be asked."""
    async with Channel.connect(base / "theirs/daemon.sock") as channel:
        theirs = Session(channel, session.namespace)
        with trio.move_on_after(LEFT_WITHIN_S):
            while await snapshots_of(theirs, SNAPSHOTTER):  # noqa: ASYNC110 - another process has them
                await trio.sleep(LOOK_S)
        left = await snapshots_of(theirs, SNAPSHOTTER)
    if left:
        raise AssertionError(f"containerd has {sorted(left)} still")


# -- foreign shims


def _under_foreign_shim(base: Path) -> Operation:
    async def create(session: Session) -> None:
        words = ("sh", "-c", "exit 7")
        await pods.create_under(session, box.BOX, box.IMAGE, pods.SHIM, *words)

    async def prepare(session: Session) -> None:
        await pods.prepare_root(session, box.BOX)

    def listens(session: Session) -> bool:
        return pods.foreign_socket(base / "daemon.sock", session.namespace, box.BOX).exists()

    async def create_task(session: Session) -> None:
        await box.create_task(session)
        assert listens(session), "the shim listens elsewhere"

    async def discard(session: Session) -> None:
        await box.discard(session)
        with suppress(NotFound):
            await asks.remove_snapshot(session, box.BOX)
        assert not listens(session), "the shim's socket is left"

    return Operation(
        name="run --rm, foreign shim",
        work=[
            prepare,
            create,
            create_task,
            box.start,
            box.wait,
            box.delete_task,
            box.remove_snapshot,
            box.delete_box,
        ],
        after=[discard],
    )


# -- loggers


async def _create_talker(session: Session) -> None:
    text = f"i=0; while [ $i -lt {LINES} ]; do echo line $i; i=$((i+1)); done; exit 7"
    await asks.create_container(session, box.BOX, box.IMAGE, "sh", "-c", text)


async def _create_logged(log: Path, session: Session) -> None:
    await asks.create_task(session, box.BOX, f"file://{log}?{CAPPED}")


def _unlogged(log: Path) -> Sequence[str]:
    """What is wrong in the log, which is removed."""
    files = sorted(
        log.parent.glob(f"{log.name}.*"), key=lambda path: int(path.suffix[1:]), reverse=True
    )
    files += [log] if log.exists() else []
    got = b"".join(path.read_bytes() for path in files)
    too_large = [path.name for path in files if path.stat().st_size > 4096]
    for path in files:
        path.unlink()
    wanted = b"".join(b"line %d\n" % number for number in range(LINES))
    wrong = [f"the log has {len(got)} bytes, not {len(wanted)}"] if got != wanted else []
    return wrong + ([f"larger than their cap: {too_large}"] if too_large else [])


# -- collecting


def _many(base: Path) -> Path:
    """The archive of an image of many small layers, which nobody unpacks."""
    path = base / "many.tar"
    if path.exists():
        return path
    config = _blob({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers"}})
    layers = [b"layer %d" % number for number in range(OBJECTS - 3)]
    oci = "application/vnd.oci.image"
    manifest = _blob(
        {
            "schemaVersion": 2,
            "mediaType": f"{oci}.manifest.v1+json",
            "config": _descriptor(f"{oci}.config.v1+json", config),
            "layers": [_descriptor(f"{oci}.layer.v1.tar", layer) for layer in layers],
        }
    )
    entry = _descriptor(f"{oci}.manifest.v1+json", manifest)
    entry["annotations"] = {"io.containerd.image.name": MANY}
    index = _blob({"schemaVersion": 2, "manifests": [entry]})
    with tarfile.open(path, "w") as tar:
        _add(tar, "oci-layout", _blob({"imageLayoutVersion": "1.0.0"}))
        _add(tar, "index.json", index)
        for blob in (config, manifest, *layers):
            _add(tar, f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}", blob)
    return path


def _blob(value: Mapping[str, object]) -> bytes:
    return json.dumps(value).encode()


def _descriptor(kind: str, blob: bytes) -> dict[str, object]:
    digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"
    return {"mediaType": kind, "digest": digest, "size": len(blob)}


def _add(tar: tarfile.TarFile, name: str, blob: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(blob)
    tar.addfile(info, BytesIO(blob))
