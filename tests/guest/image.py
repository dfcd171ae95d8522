"""The guest's image: Debian's 6.12 kernel, an initrd that finds the disk, a root file system.

Everything comes from the Debian mirror that this machine's own apt uses, and is kept below
.cache/guest: packages, so that a new image needs no network, and the image itself, so that a new
run needs no image. No mount and no loop device is made: mke2fs fills a file system from a folder.

Invariant: an image stands under its final name when, and only when, it is whole.
"""

import hashlib
import lzma
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / ".cache/guest"
# The last release whose python3 is the 3.11 that our packages are built for.
SUITE = "bookworm"
PYTHON = (3, 11)
KERNEL = r"linux-image-6\.12\.\S*\d(\+deb\d+)?-amd64"
PACKAGES = (
    "busybox-static", "containerd", "crun", "iproute2", "kmod", "mount", "procps", "python3",
    "runc",
)  # fmt: skip
# What brings the root file system: everything else is loaded from it.
EARLY_MODULES = ("virtio_blk", "ext4")
# No guest of ours has such devices; without them the image is a third of its size.
NEEDLESS = (
    "sound", "drivers/gpu", "drivers/media", "drivers/infiniband", "drivers/staging",
    "drivers/net/wireless", "drivers/net/ethernet", "drivers/scsi", "drivers/hid", "drivers/iio",
    "drivers/usb", "drivers/platform", "drivers/bluetooth", "drivers/isdn", "drivers/comedi",
)  # fmt: skip
ROOT_SIZE = "4G"  # sparse
PROGRAMS = {"qemu-system-x86_64": "qemu-system-x86", "debootstrap": "debootstrap"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """What qemu boots. None of these files is written to by a run."""

    kernel: Path
    initrd: Path
    root: Path


def ensure() -> Image:
    """The image, made when it is not there yet (a minute or two)."""
    if sys.version_info[:2] != PYTHON:
        raise SystemExit(f"the guest has Python {PYTHON}, and takes packages from a venv with that")
    install_programs()
    CACHE.mkdir(parents=True, exist_ok=True)
    folder = CACHE / f"image-{_recipe()}"
    if not folder.is_dir():
        making = CACHE / "making"
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir()
        _make(making)
        making.rename(folder)
    return Image(kernel=folder / "vmlinuz", initrd=folder / "initrd.gz", root=folder / "root.ext4")


def install_programs() -> None:
    """The emulator and the installer, by apt where they are missing."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    missing = [package for name, package in PROGRAMS.items() if not shutil.which(name, path=path)]
    if missing:
        say(f"installing: {' '.join(missing)}")
        apt = ["apt-get", "-qq", "-o", "Dpkg::Use-Pty=0"]
        run("apt-get", "-qq", "update")
        run(*apt, "install", "-y", "--no-install-recommends", *missing)


def file_system(folder: Path, target: Path, size: str) -> None:
    """An ext4 image with the folder's content."""
    run(
        "mke2fs",
        "-q",
        "-F",
        "-t",
        "ext4",
        "-O",
        "^has_journal",
        "-d",
        str(folder),
        str(target),
        size,
    )


def run(*words: str, cwd: Path | None = None) -> None:
    """Run a program; what it said is shown when it fails."""
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    environment["PATH"] = f"{environment.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(
            f"{' '.join(words)}: {done.returncode}\n{(done.stdout + done.stderr)[-4000:]}"
        )


def say(text: str) -> None:
    print(f"guest: {text}", flush=True)


def _recipe() -> str:
    """Changes with whatever the image is made of, but for new versions at the mirror."""
    scripts = [(HERE / name).read_text() for name in ("init", "early-init")]
    made_of = (SUITE, KERNEL, PACKAGES, EARLY_MODULES, NEEDLESS, ROOT_SIZE, scripts)
    return hashlib.sha256(repr(made_of).encode()).hexdigest()[:12]


def _make(folder: Path) -> None:
    kernel, release = _kernel(folder)
    root = _root(folder)
    modules = root / "usr/lib/modules" / release
    shutil.copytree(kernel / "lib/modules" / release, modules, symlinks=True)
    for name in NEEDLESS:
        shutil.rmtree(modules / "kernel" / name, ignore_errors=True)
    run("chroot", str(root), "depmod", release)
    shutil.copy(HERE / "init", root / "init")
    (root / "init").chmod(0o755)
    say("writing the initrd and the root file system")
    shutil.copy(kernel / f"boot/vmlinuz-{release}", folder / "vmlinuz")
    _initrd(folder, root / "bin/busybox", modules)
    file_system(root, folder / "root.ext4", ROOT_SIZE)
    shutil.rmtree(root)
    shutil.rmtree(kernel)


def _kernel(folder: Path) -> tuple[Path, str]:
    """The newest 6.12 kernel that apt knows, unpacked, and its release."""
    package = _newest_kernel()
    debs = CACHE / "kernels"
    debs.mkdir(exist_ok=True)
    if not list(debs.glob(f"{package}_*.deb")):
        say(f"downloading {package}")
        run("apt-get", "download", package, cwd=debs)
    (archive,) = debs.glob(f"{package}_*.deb")
    run("dpkg", "-x", str(archive), str(folder / "kernel"))
    return folder / "kernel", package.removeprefix("linux-image-")


def _newest_kernel() -> str:
    names = subprocess.run(
        ["apt-cache", "pkgnames", "linux-image-6.12"], capture_output=True, text=True, check=True
    ).stdout.split()
    found = [name for name in names if re.fullmatch(KERNEL, name)]
    if not found:
        raise SystemExit("apt knows no linux-image-6.12: add Debian's security or backports suite")
    return max(found, key=lambda name: [int(digits) for digits in re.findall(r"\d+", name)])


def _root(folder: Path) -> Path:
    """Debian's smallest system and our packages, as a folder."""
    root, debs = folder / "root", CACHE / "debs"
    debs.mkdir(exist_ok=True)
    say("installing Debian into a folder (a minute)")
    run(
        "debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}",
        f"--cache-dir={debs}", SUITE, str(root), _mirror(),
    )  # fmt: skip
    return root


def _mirror() -> str:
    """Where this machine's apt has its Debian from."""
    words = ["apt-get", "indextargets", "--format", "$(ORIGIN)\t$(LABEL)\t$(REPO_URI)"]
    lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    for line in lines:
        origin, label, address = line.split("\t")
        if (origin, label) == ("Debian", "Debian"):
            return address
    raise SystemExit("apt has no source with Debian's main archive")


def _initrd(folder: Path, busybox: Path, modules: Path) -> None:
    """busybox, the few modules and a script that mounts the disk."""
    tree = folder / "initrd"
    for name in ("bin", "dev", "modules", "new"):
        (tree / name).mkdir(parents=True)
    shutil.copy(busybox, tree / "bin/busybox")
    shutil.copy(HERE / "early-init", tree / "init")
    order = load_order((modules / "modules.dep").read_text(), EARLY_MODULES)
    for path in order:
        data = (modules / path).read_bytes()
        plain = lzma.decompress(data) if path.endswith(".xz") else data
        (tree / "modules" / _module_name(path)).write_bytes(plain)
    names = "".join(f"{_module_name(path)}\n" for path in order)
    (tree / "modules/order").write_text(names)
    (tree / "init").chmod(0o755)
    pack = f"find . | {busybox} cpio -o -H newc 2>/dev/null | gzip -1 > {folder}/initrd.gz"
    run("sh", "-c", pack, cwd=tree)
    shutil.rmtree(tree)


def load_order(dependencies: str, wanted: Sequence[str]) -> list[str]:
    """The modules to load, in order, from a modules.dep: each after all that it needs."""
    needs = {
        path: rest.split()
        for path, _, rest in (line.partition(":") for line in dependencies.splitlines())
    }
    names = {_module_name(path): path for path in needs}
    order: list[str] = []
    # ext4 asks for the checksum by the name of its algorithm, which modules.dep does not tell.
    for name in ("crc32c_generic", *wanted):
        path = names.get(name)
        # modules.dep lists the nearest first; the last has no needs of its own.
        for module in [*reversed(needs[path]), path] if path else ():
            if module not in order:
                order.append(module)
    return order


def _module_name(path: str) -> str:
    return path.rsplit("/", 1)[-1].split(".", 1)[0].replace("-", "_")
