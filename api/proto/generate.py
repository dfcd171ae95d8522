"""Writes the `_pb2.py` and `_pb2.pyi` beside every .proto, with the protoc of grpcio-tools.

    python -m holdfast.api.proto.generate

Imports in .proto text start at `holdfast/`, so that generated Python imports are absolute and no
top-level package named `types` hides the standard library's.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

PACKAGE = Path("holdfast/api/proto")


class _Protoc(Protocol):
    def main(self, arguments: Sequence[str]) -> int: ...


def proto_files(source: Path) -> list[Path]:
    """Every .proto below `source`/holdfast/api/proto, relative to `source`, in a fixed order."""
    return sorted(path.relative_to(source) for path in (source / PACKAGE).rglob("*.proto"))


def generate(source: Path, target: Path) -> list[Path]:
    """Write the Python of every .proto under `source` to `target`; raise when protoc objects."""
    tools = import_module("grpc_tools")
    protoc = cast(_Protoc, import_module("grpc_tools.protoc"))
    well_known = Path(str(tools.__file__)).parent / "_proto"
    files = proto_files(source)
    arguments = ["protoc", f"-I{source}", f"-I{well_known}"]
    arguments += [f"--python_out={target}", f"--pyi_out={target}"]
    status = protoc.main([*arguments, *map(str, files)])
    if status != 0:
        raise RuntimeError(f"protoc ended with status {status}")
    return files


def main() -> int:
    """Generate in place."""
    source = Path(import_module("holdfast").__path__[0]).parent
    files = generate(source, source)
    sys.stdout.write(f"{len(files)} files\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
