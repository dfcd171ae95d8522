"""A program on a terminal, as a person has it."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping


def on_a_terminal(
    words: list[str],
    typed: str = "",
    after: str = "",
    rows: int = 24,
    columns: int = 80,
    environment: Mapping[str, str] | None = None,
) -> tuple[str, int]:
    """Run a program on a pty of the given size; type once `after` was seen."""
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(
        words, stdin=side, stdout=side, stderr=side, env=environment, start_new_session=True
    )
    os.close(side)
    seen, deadline = b"", time.monotonic() + 30
    try:
        while time.monotonic() < deadline:
            readable, _, _ = select.select([main], [], [], 0.2)
            if readable:
                try:
                    data = os.read(main, 65536)
                except OSError:
                    break
                if not data:
                    break
                seen += data
            elif process.poll() is not None:
                break
            if typed and after.encode() in seen:
                os.write(main, typed.encode())
                typed = ""
        return seen.decode(errors="replace"), process.wait(10)
    finally:
        process.kill()
        process.wait()
        os.close(main)
