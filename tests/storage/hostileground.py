"""Where hostile layers are applied: a worker process, and a place beside what must not change."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cbor2
from attacks import lower
from layers import END

from holdfast.storage.jobframes import LENGTH_BYTES, decode_length, encode_frame
from holdfast.storage.mounts import Mount
from holdfast.storage.trees import remove_tree

FORMS = ("plain", "overlay")


class WorkerProcess:
    """A worker, as the daemon starts one."""

    def __init__(self, cwd: Path) -> None:
        self._connection, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "holdfast.storage.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd=cwd,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        self._receive()

    def do(self, job: dict[str, Any]) -> dict[str, Any]:
        """Do a job; its answer as it is."""
        self._connection.sendall(encode_frame(job))
        return self._receive()

    def _receive(self) -> dict[str, Any]:
        head = self._connection.recv(LENGTH_BYTES, socket.MSG_WAITALL)
        answer: dict[str, Any] = cbor2.loads(
            self._connection.recv(decode_length(head), socket.MSG_WAITALL)
        )
        return answer

    def begin_peak(self) -> None:
        """Count the most memory from here on."""
        Path(f"/proc/{self._process.pid}/clear_refs").write_text("5")

    def peak_bytes(self) -> int:
        """The most memory that it has held at a time."""
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))

    def cpu_s(self) -> float:
        """The processor time it has taken."""
        words = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def descriptors(self) -> int:
        """How many it holds open."""
        return len(os.listdir(f"/proc/{self._process.pid}/fd"))

    def end(self) -> None:
        """End it in order."""
        self._connection.close()
        assert self._process.wait(10) == 0


class Ground:
    """Where a layer is applied, over a lower one, beside what must not change."""

    def __init__(self, tmp: Path, form: str, worker: WorkerProcess, told: str = "") -> None:
        self.tmp, self.worker = tmp, worker
        self.outside = tmp / "outside"
        self.told = os.fsencode(told or self.outside)
        (self.outside / "sub").mkdir(parents=True)
        for name, mode in (("secret", 0o600), ("tool", 0o755), ("sub/a", 0o644)):
            (self.outside / name).write_text(name)
            (self.outside / name).chmod(mode)
        for name in ("lower", "base", "upper", "work"):
            (tmp / "inside" / name).mkdir(parents=True)
        inside = tmp / "inside"
        self.bottom = Mount(type="bind", source=f"{inside}/lower", options=("rbind", "rw"))
        self.top = self.bottom
        if form == "overlay":
            layers = f"lowerdir={inside}/lower:{inside}/base"
            own = (f"workdir={inside}/work", f"upperdir={inside}/upper")
            self.top = Mount(type="overlay", source="overlay", options=(*own, layers))
        assert "ok" in self.apply(b"".join(lower(self.told)) + END, self.bottom)
        # In the form of an overlay the layer below is outside as well.
        self.guarded = [self.outside, *([inside / "lower"] if form == "overlay" else [])]

    def apply(self, raw: bytes, onto: Mount, **limits: int) -> dict[str, Any]:
        """Have the worker apply a layer."""
        blob = self.tmp / "blob"
        blob.write_bytes(raw)
        job = {
            "do": "apply",
            "blob": str(blob),
            "media_type": "",
            "mounts": [onto.to_record()],
            "sync": False,
            "stream_bytes_max": 1 << 40,
            "entries_max": 2_000_000,
        }
        return self.worker.do({**job, **limits})

    def seen(self) -> Sequence[object]:
        """All that can be told of what is outside, the time of its last change of any kind too."""
        found: list[object] = [sorted(os.listdir(self.tmp))]
        for root in self.guarded:
            for at, directories, files in os.walk(root):
                for path in (at, *(os.path.join(at, name) for name in directories + files)):
                    status = os.lstat(path)
                    content = Path(path).read_bytes() if path in map(str, self.plain(at)) else b""
                    kept = (status.st_mode, status.st_uid, status.st_gid, status.st_nlink)
                    times = (status.st_mtime_ns, status.st_ctime_ns)
                    attributes = tuple(os.listxattr(path, follow_symlinks=False))
                    found.append((path, kept, times, status.st_size, content, attributes))
        return found

    @staticmethod
    def plain(at: str) -> list[Path]:
        """The plain files in a directory."""
        return [path for path in Path(at).iterdir() if path.is_file() and not path.is_symlink()]

    def clean(self) -> None:
        """Remove what no recursive function could."""
        fd = os.open(self.tmp, os.O_RDONLY)
        try:
            remove_tree(fd, b"inside")
        finally:
            os.close(fd)
