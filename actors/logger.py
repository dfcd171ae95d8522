"""Loggers that import structlog when the first word is said.

It takes as long to import as everything else that a command of the client needs, and most commands
log nothing.
"""

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import structlog


def get_logger(name: str) -> "structlog.stdlib.BoundLogger":
    """As `structlog.get_logger`."""
    return cast("structlog.stdlib.BoundLogger", _Logger(name))


class _Logger:
    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, verb: str) -> Any:
        import structlog

        return getattr(structlog.get_logger(self._name), verb)
