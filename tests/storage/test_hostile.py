"""Hostile layers, each applied by a worker process in both forms: nothing outside changes, no
process grows beyond its bound, and it takes seconds."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.storage.mounts import detached

sys.path.insert(0, str(Path(__file__).parent))
from attacks import ESCAPES, WHITEOUTS, Attack
from bombs import BOMBS, PARSING
from hostile import REFUSED
from hostileground import FORMS, Ground, WorkerProcess
from layers import END
from trees import look

pytestmark = pytest.mark.root

CPU_S_MAX = 20.0
SMALL = {**ESCAPES, **WHITEOUTS, **PARSING}
ATTACKS = {**SMALL, **BOMBS}


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    worker = WorkerProcess(tmp_path_factory.mktemp("cwd"))
    yield worker
    worker.end()


def _attacked(ground: Ground, attack: Attack) -> None:
    raw = attack.packed(b"".join(attack.entries(ground.told)) + attack.end)
    worker = ground.worker
    seen, open_before, cpu_s = ground.seen(), worker.descriptors(), worker.cpu_s()
    worker.begin_peak()
    answer = ground.apply(
        raw,
        ground.top,
        stream_bytes_max=attack.stream_bytes_max,
        entries_max=attack.entries_max,
    )
    assert ground.seen() == seen
    assert worker.peak_bytes() < attack.memory_bytes_max
    assert worker.cpu_s() - cpu_s < CPU_S_MAX
    assert worker.descriptors() == open_before
    if attack.refused:
        kind, text = answer["refused"]
        assert kind in {refusal.__name__ for refusal in attack.refused}, text
        # What a terminal would obey does not reach one.
        assert text.isprintable()
    else:
        assert "ok" in answer, answer
        with detached([ground.top]) as fd:
            assert attack.check(Path(f"/proc/self/fd/{fd}/."))


@pytest.fixture
def ground(tmp_path: Path, form: str, worker: WorkerProcess) -> Iterator[Ground]:
    ground = Ground(tmp_path, form, worker)
    yield ground
    ground.clean()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_changes_nothing_outside(ground: Ground, name: str) -> None:
    _attacked(ground, ATTACKS[name])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_changes_nothing_outside(ground: Ground, name: str) -> None:
    refusal, entries = REFUSED[name]
    end = b"" if "cut short" in name else END
    _attacked(ground, Attack(entries=lambda outside: entries, refused=(refusal,), end=end))


@pytest.mark.parametrize("name", [name for name in SMALL if not SMALL[name].refused])
def test_both_forms_make_the_same_of_an_attack(
    tmp_path: Path, worker: WorkerProcess, name: str
) -> None:
    trees = []
    for form in FORMS:
        ground = Ground(tmp_path / form, form, worker, told=f"{tmp_path}/plain/outside")
        attack = SMALL[name]
        answer = ground.apply(
            attack.packed(b"".join(attack.entries(ground.told)) + END), ground.top
        )
        assert "ok" in answer, answer
        with detached([ground.top]) as fd:
            trees.append(look(Path(f"/proc/self/fd/{fd}/.")))
        ground.clean()
    assert trees[0] == trees[1]
