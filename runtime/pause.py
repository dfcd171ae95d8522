"""The program that a sandbox is: it holds the namespaces, and does nothing else.

A static program of a few hundred bytes, so that a sandbox needs no image. It waits; SIGTERM and
SIGINT end it with status 0; children that are left to it, as the first process of a pid namespace,
are reaped by the kernel, for it ignores SIGCHLD. That is all of it:

    rt_sigaction(SIGCHLD, ignore), rt_sigaction(SIGTERM, leave), rt_sigaction(SIGINT, leave)
    again: pause(); goto again
    leave: exit(0)

`pause_root` blocks: call it in a thread.
"""

import os
import platform
import signal
import struct
from pathlib import Path

from ..actors.errors import Unimplemented

NAME = "pause"
MACHINE = "x86_64"
# Where a runtime mounts something, when the spec says so.
MOUNT_POINTS = ("dev", "proc", "sys")

_BASE = 0x400000
_ELF = struct.Struct("<16s2HI3QI6H")
_SEGMENT = struct.Struct("<2I6Q")
_ACTION = struct.Struct("<4Q")
_SA_RESTORER = 0x04000000
_SIG_IGN = 1


def program() -> bytes:
    """The executable, for x86-64."""
    start = _BASE + _ELF.size + _SEGMENT.size
    waiting = b"\xb8\x22\0\0\0\x0f\x05\xeb\xf7"  # mov eax, pause; syscall; jmp back
    leaving = b"\xb8\x3c\0\0\0\x31\xff\x0f\x05"  # mov eax, exit; xor edi, edi; syscall
    handled = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)
    leave = start + len(handled) * len(_sigaction(0, 0)) + len(waiting)
    actions = leave + len(leaving)
    ignore = _ACTION.pack(_SIG_IGN, 0, 0, 0)
    end = _ACTION.pack(leave, _SA_RESTORER, leave, 0)
    code = b"".join(
        _sigaction(number, actions if number is signal.SIGCHLD else actions + len(ignore))
        for number in handled
    )
    body = code + waiting + leaving + ignore + end
    size = _ELF.size + _SEGMENT.size + len(body)
    # 64 bits, little-endian, version 1; an executable for x86-64.
    identity = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = _ELF.pack(
        identity, 2, 62, 1, start, _ELF.size, 0, 0, _ELF.size, _SEGMENT.size, 1, 0, 0, 0
    )
    # One segment, to be loaded whole, to read and to execute.
    return header + _SEGMENT.pack(1, 5, 0, _BASE, _BASE, size, size, 0x1000) + body


def _sigaction(number: int, action: int) -> bytes:
    # mov eax, rt_sigaction; mov edi, number; mov esi, action; xor edx, edx; mov r10d, 8; syscall
    return struct.pack("<BIBIBI", 0xB8, 13, 0xBF, number, 0xBE, action) + (
        b"\x31\xd2\x41\xba\x08\0\0\0\x0f\x05"
    )


def pause_root(state: Path) -> Path:
    """A root filesystem with the program in it, the same for all sandboxes."""
    if platform.machine() != MACHINE:
        raise Unimplemented(
            f"a sandbox without a root filesystem of its own, on {platform.machine()}:"
            " not implemented"
        )
    root = state / NAME
    for path in (root, *(root / name for name in MOUNT_POINTS)):
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
    target = root / NAME
    text = program()
    if not target.exists() or target.read_bytes() != text:
        partial = root / f".{NAME}.{os.getpid()}"
        partial.write_bytes(text)
        partial.chmod(0o755)
        os.replace(partial, target)
    return root
