"""The reference layer, imported and unpacked: Holdfast and Debian's containerd, in one run.

    python -m bench.layer [--rounds 5] [--store tmpfs|disk] [--compressions gzip zstd]

The layer is a tar of 245 MB with 10,000 files, whose bytes are two thirds text and one third noise.
It comes in an OCI archive, which each daemon is given by `ctr images import`, the same client for
both; Holdfast also by its own `holdfast import`. Rounds alternate, and after each the image is
removed and collected. The figures are medians of the seconds from the start of the client to its
end, of the processor's seconds that client, daemon and workers took, and the most memory that a
daemon with its workers held in any round: the sum of what each process held at most. On a machine
that is busy otherwise the processor's seconds tell more than the others.

The stores lie on a tmpfs unless asked otherwise: a disk that others use tells more of them.
"""

import argparse
import contextlib
import gzip
import io
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from backports import zstd
from bench.daemons import Daemon, running

RESULTS = Path(__file__).parent / "results" / "layer.json"

FILES = 10_000
DIRECTORY_FILES = 50
BYTES = 237_000_000  # with headers and padding a tar of 245 MB
NAME = "docker.io/library/reference:1"
TARGET_RATIO = 1.5
TARGET_MEMORY_MB = 150
WITHIN_S = 120

Report = dict[str, Any]


def layer_tar(seed: int = 245) -> bytes:
    """The layer."""
    chance = random.Random(seed)
    words = [chance.randbytes(chance.randrange(2, 9)).hex().encode() for _ in range(500)]
    text = b" ".join(chance.choice(words) for _ in range(2000))
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        shares = [chance.lognormvariate(0, 1) for _ in range(FILES)]
        whole = sum(shares)
        for number, share in enumerate(shares):
            folder = f"usr/share/part{number // DIRECTORY_FILES:03}"
            if number % DIRECTORY_FILES == 0:
                entry = tarfile.TarInfo(folder)
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(entry)
            size = int(share / whole * BYTES)
            at = chance.randrange(len(text) - 1)
            prose = (text[at:] + text * (size // len(text) + 1))[: size * 2 // 3]
            data = prose + chance.randbytes(size - len(prose))
            entry = tarfile.TarInfo(f"{folder}/file{number:05}.dat")
            entry.size, entry.mode, entry.mtime = len(data), 0o644, 1_700_000_000 + number
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def oci_archive(path: Path, layer: bytes, compression: str) -> int:
    """An archive of an image with this one layer; the size of its blob."""
    from hashlib import sha256

    packed = gzip.compress(layer, 6, mtime=0) if compression == "gzip" else zstd.compress(layer)
    media = "application/vnd.oci.image."
    blobs: dict[str, bytes] = {}

    def add(kind: str, raw: bytes) -> Report:
        digest = sha256(raw).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = raw
        return {"mediaType": media + kind, "digest": f"sha256:{digest}", "size": len(raw)}

    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{sha256(layer).hexdigest()}"]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{media}manifest.v1+json",
        "config": add("config.v1+json", json.dumps(config).encode()),
        "layers": [add(f"layer.v1.tar+{compression}", packed)],
    }
    top = add("manifest.v1+json", json.dumps(manifest).encode())
    top["annotations"] = {"io.containerd.image.name": NAME}
    top["platform"] = {"architecture": "amd64", "os": "linux"}
    members = {
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        "index.json": json.dumps({"schemaVersion": 2, "manifests": [top]}).encode(),
        **blobs,
    }
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, raw in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(raw)
            archive.addfile(entry, io.BytesIO(raw))
    return len(packed)


@contextlib.contextmanager
def store_on(kind: str) -> Iterator[Path]:
    """A directory for the daemons' stores."""
    with tempfile.TemporaryDirectory(prefix="holdfast-layer-") as folder:
        if kind == "disk":
            yield Path(folder)
            return
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4g", "tmpfs", folder], check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


def commands(daemon: Daemon) -> dict[str, list[str]]:
    """How this daemon can be given an archive."""
    ctr = ["ctr", "--address", str(daemon.socket), "images", "import"]
    if daemon.kind == "containerd":
        return {"containerd": ctr}
    own = [sys.executable, "-m", "holdfast", "--address", str(daemon.socket), "import"]
    return {"holdfast": ctr, "holdfast import": own}


def forget(daemon: Daemon) -> None:
    """Remove the image with all that it brought."""
    ctr = ["ctr", "--address", str(daemon.socket)]
    subprocess.run([*ctr, "images", "rm", "--sync", NAME], check=True, capture_output=True)
    for words in (("content", "ls", "--quiet"), ("snapshots", "ls")):
        said = subprocess.run([*ctr, *words], check=True, capture_output=True, text=True)
        if "sha256:" in said.stdout:
            raise SystemExit(f"{daemon.kind} has not collected all: {said.stdout[:500]}")


def processes_of(daemon: Daemon) -> list[int]:
    """The daemon and what it has started."""
    found, pending = [], [daemon.pid]
    while pending:
        pid = pending.pop()
        found.append(pid)
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                pending += map(int, (task / "children").read_text().split())
    return found


def peak_mb(daemon: Daemon) -> float:
    """What its processes have held at most, each for itself."""
    most = 0
    for pid in processes_of(daemon):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("VmHWM"):
                    most += int(line.split()[1])
    return most / 1000


def cpu_s(daemon: Daemon) -> float:
    """What its processes, and the clients that have ended, have taken of the processor."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    ticks = 0
    for pid in processes_of(daemon):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(words[11]) + int(words[12])
    return ticks / os.sysconf("SC_CLK_TCK") + ended.ru_utime + ended.ru_stime


def measure(daemons: list[Daemon], archive: Path, rounds: int) -> Report:
    """Alternate the ways; of each the median of its seconds, and its daemon's peak of memory."""
    ways = [(name, words, each) for each in daemons for name, words in commands(each).items()]
    took_s: dict[str, list[float]] = {name: [] for name, _, _ in ways}
    busy_s: dict[str, list[float]] = {name: [] for name, _, _ in ways}
    memory_mb: dict[str, float] = {}
    for number in range(rounds + 1):
        for name, words, daemon in ways if number % 2 == 0 else reversed(ways):
            before_s, began_s = cpu_s(daemon), time.perf_counter()
            subprocess.run(
                [*words, str(archive)], check=True, capture_output=True, timeout=WITHIN_S
            )
            seconds = time.perf_counter() - began_s
            memory_mb[name] = max(memory_mb.get(name, 0.0), peak_mb(daemon))
            if number:  # the first warms caches
                took_s[name].append(seconds)
                busy_s[name].append(cpu_s(daemon) - before_s)
            forget(daemon)
    return {
        name: {
            "seconds": round(statistics.median(took_s[name]), 3),
            "cpu_s": round(statistics.median(busy_s[name]), 3),
            "all_s": [round(seconds, 3) for seconds in took_s[name]],
            "peak_mb": round(memory_mb[name], 1),
        }
        for name in took_s
    }


def table(results: dict[str, Report]) -> str:
    """What was measured, with what it was to be."""
    lines = []
    for compression, sides in results.items():
        theirs = sides["containerd"]["seconds"]
        lines += ["", f"{compression:<24}{'s':>8}{'times as fast':>16}{'CPU s':>8}{'peak MB':>10}"]
        for name, figures in sides.items():
            ratio = theirs / figures["seconds"]
            told = (
                f"{figures['seconds']:8.2f}{ratio:16.2f}"
                f"{figures['cpu_s']:8.2f}{figures['peak_mb']:10.1f}"
            )
            holds = ratio >= TARGET_RATIO and figures["peak_mb"] < TARGET_MEMORY_MB
            verdict = f"holds {'yes' if holds else 'NO'}" if name != "containerd" else ""
            lines.append(f"  {name:<22}{told}   {verdict}")
    lines.append(f"target: {TARGET_RATIO} times as fast, peak below {TARGET_MEMORY_MB} MB")
    return "\n".join(lines)


def measured(
    rounds: int, store: str = "tmpfs", compressions: Sequence[str] = ("gzip", "zstd")
) -> dict[str, Report]:
    """Of each compression, the figures of each way."""
    layer = layer_tar()
    results: dict[str, Report] = {}
    with tempfile.TemporaryDirectory(prefix="holdfast-layer-") as folder:
        for compression in compressions:
            archive = Path(folder) / f"{compression}.tar"
            size = oci_archive(archive, layer, compression)
            sys.stderr.write(
                f"{compression}: a tar of {len(layer) / 1e6:.0f} MB with {FILES} files,"
                f" {size / 1e6:.0f} MB packed\n"
            )
            with (
                store_on(store) as base,
                running("holdfast", base / "holdfast", log_level="warn") as ours,
                running("containerd", base / "containerd", log_level="warn") as theirs,
            ):
                results[compression] = measure([ours, theirs], archive, rounds)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--store", choices=["tmpfs", "disk"], default="tmpfs")
    parser.add_argument("--compressions", nargs="+", default=["gzip", "zstd"])
    given = parser.parse_args()
    results = measured(given.rounds, given.store, given.compressions)
    RESULTS.parent.mkdir(exist_ok=True)
    machine = {"kernel": os.uname().release, "cores": os.cpu_count(), "store": given.store}
    RESULTS.write_text(json.dumps({"machine": machine, "layer": results}, indent=2) + "\n")
    sys.stdout.write(table(results) + f"\nwritten to {RESULTS}\n")


if __name__ == "__main__":
    main()
