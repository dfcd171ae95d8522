"""The `holdfast` command against a daemon, for tests."""

import json
import subprocess
import sys
from collections.abc import Mapping

from bench.daemons import Daemon


class Command:
    """The command with the daemon's address: run it, read its words."""

    def __init__(self, daemon: Daemon, environment: Mapping[str, str] | None = None) -> None:
        self.words = [sys.executable, "-m", "holdfast", "--address", str(daemon.socket)]
        self.environment = environment

    def raw(
        self, *words: str, stdin: str | None = None, timeout_s: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run it, however it ends."""
        return subprocess.run(
            [*self.words, *words],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            env=self.environment,
            check=False,
        )

    def run(self, *words: str, stdin: str | None = None, code: int = 0) -> str:
        """Run it, check its exit status, give its standard output."""
        done = self.raw(*words, stdin=stdin)
        said = f"{words}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        assert done.returncode == code, said
        return done.stdout

    def refused(self, *words: str, stdin: str | None = None) -> str:
        """Run what must be refused; the one line that says so."""
        done = self.raw(*words, stdin=stdin)
        assert (done.returncode, done.stdout) == (1, ""), f"{words}: {done}"
        lines = [line for line in done.stderr.splitlines() if line.startswith("holdfast: ")]
        assert done.stderr.endswith(f"{lines[-1]}\n")
        return lines[-1]

    def records(self, *words: str) -> list[dict[str, object]]:
        """What it prints as JSON."""
        return [json.loads(line) for line in self.run(*words, "--format", "json").splitlines()]
