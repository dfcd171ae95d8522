"""Compare Holdfast with Debian's containerd: python -m tests.difference --sequences 20000 --seed 7

The seed is printed; the seed reruns it. `--replay FILE` runs one script as it was printed.
"""

import argparse
import secrets
import signal
import sys
import tempfile
import time
from pathlib import Path

from .compare import Found, compare, once, pair
from .draw import KINDS
from .step import parse


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--sequences", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--differences", type=int, default=5, help="stop after so many")
    parser.add_argument("--kinds", nargs="*", default=[], choices=[*sorted(KINDS), "tasks"])
    parser.add_argument("--replay", type=Path, help="a file with one script")
    parser.add_argument("--survey", action="store_true", help="one of each kind, not shortened")
    given = parser.parse_args()
    # The daemons end with this command, however it ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    seed = secrets.randbelow(2**32) if given.seed is None else given.seed
    with tempfile.TemporaryDirectory(prefix="difference-") as base, pair(Path(base)) as both:
        began_s = time.monotonic()
        if given.replay:
            found = Found(sequences=1)
            difference = once(both, 0, parse(given.replay.read_text()), found)
            found.differences += [difference] if difference else []
        else:
            print(f"seed {seed}", flush=True)
            found = compare(
                both,
                given.sequences,
                seed,
                differences_max=given.differences,
                kinds=given.kinds,
                survey=given.survey,
                tell=_tell,
            )
        for difference in found.differences:
            print(difference.brief() if given.survey else difference)
        print(
            f"{found.sequences} sequences, {found.steps} steps, {found.refusals} refused,"
            f" {len(found.differences)} differences in {time.monotonic() - began_s:.0f} s"
        )
        for row, times in sorted(found.rows.items()):
            print(f"  {times:6} x {row}")
    return 1 if found.differences else 0


def _tell(found: Found) -> None:
    """How far it is, for whoever waits half an hour."""
    differ = "".join(f"; {each.number} differs" for each in found.differences[-1:])
    print(f"{found.sequences} sequences, {found.steps} steps{differ}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
