"""Swaps names of a directory with symlinks, as fast as it can, until its input ends: a program.

    python renamer.py ROOT FLIPS_MIN NAME=TARGET...

Each NAME is exchanged with `.NAME`, a symlink to TARGET; what the other side has removed is made
anew. Prints a line once FLIPS_MIN exchanges have been made, and at the end how many there were. An
exchange counts when a symlink and something else have changed places.
"""

import ctypes
import itertools
import os
import select
import sys

RENAME_EXCHANGE = 2
ROUND = 200


def is_link(root_fd: int, name: bytes) -> bool | None:
    """Whether it is a symlink; None when there is nothing."""
    try:
        os.readlink(name, dir_fd=root_fd)
    except FileNotFoundError:
        return None
    except OSError:
        return False
    return True


def mend(root_fd: int, name: bytes, other: bytes, target: bytes, number: int) -> None:
    """Have a symlink under one of the names and something else under the other."""
    links = is_link(root_fd, name), is_link(root_fd, other)
    try:
        if True not in links:
            if links[1] is not None:
                os.rename(other, b".gone%d" % number, src_dir_fd=root_fd, dst_dir_fd=root_fd)
            os.symlink(target, other, dir_fd=root_fd)
        elif None in links:
            os.mkdir(name if links[0] is None else other, dir_fd=root_fd)
    except OSError:
        pass  # the other side was faster


def main() -> None:
    root, flips_min, *told = sys.argv[1:]
    root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    exchange = ctypes.CDLL(None, use_errno=True).renameat2
    pairs = []
    for each in told:
        name, target = each.encode().split(b"=")
        folder, _, last = name.rpartition(b"/")
        pairs.append((name, os.path.join(folder, b"." + last), target))
    swaps = itertools.cycle(pairs)
    flips, enough = 0, False
    for number in itertools.count():
        for _ in range(ROUND):
            name, other, target = next(swaps)
            done = exchange(root_fd, name, root_fd, other, RENAME_EXCHANGE) == 0
            if done and {is_link(root_fd, name), is_link(root_fd, other)} == {True, False}:
                flips += 1
            else:
                mend(root_fd, name, other, target, number)
        if not enough and flips >= int(flips_min):
            sys.stdout.write("enough\n")
            sys.stdout.flush()
            enough = True
        if select.select([0], [], [], 0)[0]:
            break
    sys.stdout.write(f"{flips}\n")


if __name__ == "__main__":
    main()
