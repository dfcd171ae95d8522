"""How containerd words a refusal that a service passes on."""

from collections.abc import Generator
from contextlib import contextmanager

from ...actors.errors import Refusal


@contextmanager
def said_first(words: str) -> Generator[None, None, None]:
    """A refusal within keeps its kind, and begins with these words."""
    try:
        yield
    except Refusal as error:
        raise type(error)(f"{words}: {error}") from error
