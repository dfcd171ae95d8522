"""Count the programs that the machine executes, by name, through the kernel's proc connector.

The connector (Linux, `Documentation/driver-api/connector.rst`) multicasts one message per
execve. Needs CAP_NET_ADMIN in the initial namespaces. A process that ended before its name
could be read counts as "(gone)".
"""

import collections
import os
import socket
import struct
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

NETLINK_CONNECTOR = 11
CN_IDX_PROC = CN_VAL_PROC = 1
LISTEN, IGNORE = 1, 2
PROC_EVENT_EXEC = 2
NLMSG_DONE = 3
EVENT_OFFSET = 16 + 20  # netlink header, connector header
RECEIVE_BUFFER = 8 << 20


class ExecCounter:
    """Within the block, `names` counts every execve on the machine by the new program's name."""

    def __init__(self) -> None:
        self.names: collections.Counter[str] = collections.Counter()
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, NETLINK_CONNECTOR)
        self._thread = threading.Thread(target=self._listen, daemon=True)

    @property
    def total(self) -> int:
        return sum(self.names.values())

    def __enter__(self) -> Self:
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        self._socket.bind((0, CN_IDX_PROC))
        self._ask(LISTEN)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ask(IGNORE)
        self._socket.settimeout(0.2)
        self._thread.join(2.0)
        self._socket.close()

    def _ask(self, what: int) -> None:
        body = struct.pack("=IIIIHHI", CN_IDX_PROC, CN_VAL_PROC, 0, 0, 4, 0, what)
        header = struct.pack("=IHHII", 16 + len(body), NLMSG_DONE, 0, 0, os.getpid())
        self._socket.send(header + body)

    def _listen(self) -> None:
        while True:
            try:
                message = self._socket.recv(4096)
            except (TimeoutError, OSError):
                return
            (what,) = struct.unpack_from("=I", message, EVENT_OFFSET)
            if what == PROC_EVENT_EXEC:
                (pid,) = struct.unpack_from("=I", message, EVENT_OFFSET + 16)
                self.names[_name(pid)] += 1


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "(gone)"
