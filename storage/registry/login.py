"""Whether a registry takes credentials, before they are kept for it."""

import trio

from .auth import Credentials
from .hosts import Remote, hosts_of, split_folders
from .retry import Patience
from .session import Session
from .transport import Transport, close


async def check_login(host: str, given: Credentials, folders: str, scheme: str) -> bool:
    """Show the credentials to the registry of this name, not to its mirrors; it refuses what is
    wrong. False where it lets everybody in and has not looked at them."""
    asked = False

    async def ask(_: str) -> Credentials:
        nonlocal asked
        asked = True
        await trio.lowlevel.checkpoint()
        return given

    def opened() -> Session:
        remote = Remote(text=host, host=host, repository="", tag="", digest="")
        server = hosts_of(remote, split_folders(folders), scheme)[-1]
        return Session(host, server, Transport(host, server), ask, {}, Patience())

    session = await trio.to_thread.run_sync(opened)
    try:
        await close(await session.ask("GET", f"{session.host.base}/", {}, frozenset()))
    finally:
        await session.aclose()
    return asked
