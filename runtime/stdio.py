"""Stdio: where a process's input comes from and its output goes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Stdio:
    """Where a process's streams lead: "" (nowhere), the path of a FIFO, or a file:// URI."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False
