"""Where the daemon's time goes while containers come and go: `make profile`.

    python -m bench.profile [--seconds 15] [--parallel 8] [--children]

Runs the load against a Holdfast of its own under py-spy, writes a flame graph to
bench/results/profile.svg, and prints the functions in which the daemon's main thread is found most
often: by themselves, and with what they call. Samples of a waiting thread are left out.
"""

import argparse
import collections
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path

from bench import work
from bench.daemons import measured
from examples import busybox_image

GRAPH = Path(__file__).parent / "results" / "profile.svg"
PY_SPY = str(Path(sys.executable).with_name("py-spy"))
WAITS = ("get_events (trio", "wait (threading", "_work (trio/_core/_thread_cache")
SHOWN = 40


def shares(stacks: Iterable[str]) -> tuple[collections.Counter[str], collections.Counter[str]]:
    """Of py-spy's raw stacks, how often each function is at the end of one, and in one at all."""
    own: collections.Counter[str] = collections.Counter()
    whole: collections.Counter[str] = collections.Counter()
    for line in stacks:
        stack, _, count = line.rpartition(" ")
        frames = [re.sub(r":\d+\)$", ")", frame) for frame in stack.split(";")]
        if any(wait in frames[-1] for wait in WAITS):
            continue
        own[frames[-1]] += int(count)
        for frame in set(frames):
            whole[frame] += int(count)
    return own, whole


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=15)
    parser.add_argument("--parallel", type=int, default=8)
    parser.add_argument("--children", action="store_true", help="the shims and workers as well")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="holdfast-profile-") as folder:
        base = Path(folder)
        busybox_image.build(base / "busybox.tar")
        with measured("holdfast", base / "holdfast") as daemon:
            target = work.prepared(daemon, base / "busybox.tar")
            ended = threading.Event()

            def load() -> None:
                while not ended.is_set():
                    work.cycles(target, 4 * given.parallel, given.parallel)

            thread = threading.Thread(target=load)
            thread.start()
            record = [PY_SPY, "record", "--pid", str(daemon.pid), "--rate", "200"]
            record += ["--duration", str(given.seconds)]
            record += ["--subprocesses"] if given.children else []
            try:
                raw = base / "raw"
                words = [*record, "--format", "raw", "--output", str(raw)]
                subprocess.run(words, check=True, capture_output=True)
                GRAPH.parent.mkdir(exist_ok=True)
                subprocess.run([*record, "--output", str(GRAPH)], check=True, capture_output=True)
            finally:
                ended.set()
                thread.join()
            own, whole = shares(raw.read_text().splitlines())
    total = sum(own.values())
    for title, found in (("by itself", own), ("with what it calls", whole)):
        sys.stdout.write(f"\n{title}\n")
        for name, count in found.most_common(SHOWN):
            sys.stdout.write(f"{100 * count / total:6.1f} %  {name}\n")
    sys.stdout.write(f"\nflame graph: {GRAPH}\n")


if __name__ == "__main__":
    main()
