"""Content."""

import hashlib
import subprocess
import time
from pathlib import Path

import pytest
from driver import Ctr, Pair

pytestmark = [pytest.mark.root, pytest.mark.slow]


def ingest(ctr: Ctr, words: str) -> str:
    """Take words in and keep them: what nothing refers to may be collected at any moment."""
    digest = "sha256:" + hashlib.sha256(words.encode()).hexdigest()
    for _ in range(20):
        ctr.run("content", "ingest", f"a-reference-{digest}", stdin=words)
        if ctr.raw("content", "label", digest, "containerd.io/gc.root=test").returncode == 0:
            return digest
    raise AssertionError("what was taken in was collected before it was labelled, 20 times")


def test_content_is_ingested_read_labelled_and_removed(fresh: Ctr) -> None:
    words = f"some words for {fresh.words[-1]}\n"
    digest = ingest(fresh, words)
    assert fresh.run("content", "ls", "-q").split() == [digest]
    assert fresh.run("content", "get", digest) == words
    rows = fresh.table("content", "ls")
    assert rows[0] == ["DIGEST", "SIZE", "AGE", "LABELS"]
    assert rows[1][:2] == [digest, f"{len(words)}B"]
    fresh.run("content", "label", digest, "colour=blue")
    assert "colour=blue" in fresh.run("content", "ls")
    assert fresh.run("content", "rm", digest).strip() == digest
    assert fresh.run("content", "ls", "-q") == ""


def test_content_is_edited_into_other_content(fresh: Ctr, tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text("#!/bin/sh\necho '{\"edited\": true}' > $1\n")
    editor.chmod(0o755)
    digest = ingest(fresh, f"before {fresh.words[-1]}")
    edited = "sha256:" + hashlib.sha256(b'{"edited": true}\n').hexdigest()
    assert fresh.run("content", "edit", "--editor", str(editor), digest).strip() == edited
    assert fresh.run("content", "get", digest) == f"before {fresh.words[-1]}"


def test_references_of_layers_are_pruned(pair: Pair) -> None:
    for ctr in pair:
        ctr.run("images", "import", str(ctr.daemon.base / "busybox.tar"))
    assert "Removing label" in pair.same("content", "prune", "references", "--dry")
    for ctr in pair:
        before = ctr.run("content", "ls", "-q").split()
        ctr.run("content", "prune", "references")
        # The layer is unpacked, so that it is not needed; the manifest and its configuration are.
        assert len(ctr.run("content", "ls", "-q").split()) == len(before) - 1
    pair.same("content", "prune", "references", "--async")
    pair.same("content", "get", "sha256:" + "0" * 64, code=1)
    pair.same("content", "rm", "sha256:" + "0" * 64)
    pair.same("content", "active")


def test_content_with_an_unexpected_digest_is_refused(fresh: Ctr) -> None:
    wrong = "sha256:" + "0" * 64
    done = fresh.raw("content", "ingest", "--expected-digest", wrong, "a-reference", stdin="words")
    assert done.returncode != 0
    assert "unexpected commit digest" in done.stderr
    assert fresh.run("content", "ls", "-q") == ""


def test_an_open_ingest_is_active(fresh: Ctr) -> None:
    with subprocess.Popen(
        [*fresh.words, "content", "ingest", "slow-reference"], stdin=subprocess.PIPE
    ) as slow:
        assert slow.stdin is not None
        slow.stdin.write(b"x" * (2 << 20))
        slow.stdin.flush()
        deadline = time.monotonic() + 10
        while "slow-reference" not in fresh.run("content", "active"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        slow.stdin.close()
        assert slow.wait(10) == 0
    assert "slow-reference" not in fresh.run("content", "active")
