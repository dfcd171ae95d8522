"""The entry point of `holdfastd`: import the daemon quickly, then run it.

From the death of a daemon to the first answer of the next, most of the time goes into imports.
Some things of them are not needed, and are left out or put off, for this process alone:

- Collecting garbage among tens of thousands of objects that live for ever: a fifth of the time.
- What others take along in case that it is wanted: structlog rich, to print in colours, and
  asyncio, for loggers that wait, another fifth together.
- dataclasses writes and compiles up to six methods of each class, a sixth of the time: here each
  when it is first called, which most never are.
- protobuf's module for messages as text: it is read when somebody prints one.
"""

import dataclasses
import gc
import importlib.util
import os
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, cast

# What structlog and shutil find while they are imported: no such module, or one with nothing in it.
LEFT_OUT: Mapping[str, ModuleType | None] = {
    "rich": None,
    "bz2": None,
    "lzma": None,
    "asyncio": ModuleType("asyncio"),
}
ON_DEMAND = "google.protobuf.text_format"
# The function that makes each method, of Python 3.11 and 3.12. Without it all are made at once.
MAKE_METHOD = "_create_fn"
# The loop's thread lets the database's run whenever it touches a socket, and would have to wait for
# its turn for five milliseconds.
SWITCH_INTERVAL_S = 0.0005


def main() -> None:
    """Run the daemon's command line; by the name of containerd, that of containerd."""
    if os.path.basename(sys.argv[0]) == "containerd":
        from .containerd.command import main as containerd

        containerd()
    load_daemon().daemon(prog_name="holdfastd")


def load_daemon() -> ModuleType:
    """The daemon's module, imported quickly."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.disable()
    _import_on_demand(ON_DEMAND)
    with _left_out(), methods_made_on_use():
        from . import daemon
    gc.freeze()
    gc.enable()
    return daemon


@contextmanager
def _left_out() -> Generator[None]:
    """Whoever has imported one already keeps it."""
    modules = cast("dict[str, Any]", sys.modules)
    kept = {name: modules.get(name) for name in LEFT_OUT}
    modules.update({name: kept[name] or left_out for name, left_out in LEFT_OUT.items()})
    try:
        yield
    finally:
        for name, module in kept.items():
            if module is None:
                del modules[name]
            else:
                modules[name] = module


@contextmanager
def methods_made_on_use() -> Generator[None]:
    """Meanwhile, the methods of dataclasses are promises, which their first call fulfils."""
    made_at_once = vars(dataclasses).get(MAKE_METHOD)
    if made_at_once is None:
        yield
        return
    setattr(dataclasses, MAKE_METHOD, _promising(made_at_once))
    try:
        yield
    finally:
        setattr(dataclasses, MAKE_METHOD, made_at_once)


def _promising(make: Callable[..., Any]) -> Callable[..., Any]:
    def promise(name: str, *source: Any, **context: Any) -> Callable[..., Any]:
        made: Any = None

        def method(self: object, *values: Any, **named: Any) -> Any:
            nonlocal made
            if made is None:
                made = make(name, *source, **context)
                made.__qualname__ = method.__qualname__
                for owner in type(self).__mro__:
                    if vars(owner).get(name) is method:
                        setattr(owner, name, made)
            return made(self, *values, **named)

        method.__name__ = name
        return method

    return promise


def _import_on_demand(name: str) -> None:
    """As if it were imported; its code runs when something of it is asked for."""
    modules: Mapping[str, ModuleType] = sys.modules
    spec = None if name in modules else importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        return
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(modules[parent], child, module)


if __name__ == "__main__":
    main()
