"""A layer is applied while another process swaps what it is applied to with symlinks to outside."""

import select
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from hostileground import FORMS, Ground, WorkerProcess
from layers import END, block, directory, file, hard_link, pax, symlink

pytestmark = [pytest.mark.root, pytest.mark.slow]

FLIPS = 100_000
APPLIES_MIN = 100
RENAMER = Path(__file__).with_name("renamer.py")

# Everything that an entry can do, below names that are swapped and to them.
CHANGES = [
    part
    for place in (b"d", b"e", b"p/q")
    for part in (
        file(place + b"/a", b"mine", mode=0o4777, uid=7),
        pax({b"SCHILY.xattr.user.mine": b"1"}),
        file(place + b"/secret", b"mine", mode=0o666),
        directory(place + b"/sub", 0o777, uid=7),
        file(place + b"/sub/deep/er", b"mine"),
        hard_link(place + b"/tool", place + b"/a"),
        hard_link(place + b"/linked", place + b"/secret"),
        symlink(place + b"/link", b"/etc"),
        block(place + b"/pipe", b"6", mode=0o777, uid=7),
        block(place + b"/null", b"3", major=1, minor=3, mode=0o666),
        file(place + b"/.wh.secret"),
        file(place + b"/sub/.wh..wh..opq"),
        directory(place, 0o777, uid=7),
        file(place + b"/sub/a", b"mine"),
        file(place + b"/.wh.sub"),
        file(place + b"/.wh..wh..opq"),
        block(place + b"/tool", b"3"),
    )
] + [
    file(b"f", b"mine", mode=0o6777, uid=7),
    hard_link(b"g", b"f"),
    block(b"f", b"6", mode=0o777),
    directory(b"f", 0o777, uid=7),
    directory(b"f/x", 0o777),
    file(b"f", b"mine", mode=0o6777, uid=7),
]


def _swapped(ground: Ground, root: Path) -> list[str]:
    """Make what is swapped, directories and a file; each with what the symlink leads to."""
    for name in ("d", "e", "p/q"):
        (root / name / "sub").mkdir(parents=True, exist_ok=True)
    (root / "f").write_text("f")
    relative = "../" * len(root.parts) + str(ground.outside.relative_to("/"))
    return [
        f"d={ground.outside}",
        f"e={relative}",
        f"p/q={ground.outside}/sub",
        f"f={ground.outside}/secret",
    ]


@pytest.mark.parametrize("form", FORMS)
def test_a_racing_renamer_leads_nothing_outside(tmp_path: Path, form: str) -> None:
    (tmp_path / "cwd").mkdir()
    worker = WorkerProcess(tmp_path / "cwd")
    ground = Ground(tmp_path / "ground", form, worker)
    root = ground.tmp / "inside" / ("upper" if form == "overlay" else "lower")
    swapped = _swapped(ground, root)
    seen = ground.seen()
    answers: Counter[str] = Counter()
    words = [sys.executable, str(RENAMER), str(root), str(FLIPS), *swapped]
    renamer = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert renamer.stdin is not None
    assert renamer.stdout is not None
    try:
        enough = False
        while not enough or answers.total() < APPLIES_MIN:
            answer = ground.apply(b"".join(CHANGES) + END, ground.top)
            assert "fault" not in answer, answer
            answers[next(iter(answer))] += 1
            enough = enough or bool(select.select([renamer.stdout], [], [], 0)[0])
        out, _ = renamer.communicate(b"end", timeout=60)
        flips = int(out.split()[-1])
        assert ground.seen() == seen
    finally:
        renamer.kill()
        renamer.wait()
        worker.end()
        ground.clean()
    assert flips >= FLIPS
    assert answers.total() >= APPLIES_MIN
