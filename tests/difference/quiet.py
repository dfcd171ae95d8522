"""`holdfastd` whose collector works on request alone, so that what is gone is gone for a reason
that a sequence gave. containerd is told the same in its settings."""

import trio

from holdfast.api.boot import main
from holdfast.storage.collector import Collector


async def _on_request(_: Collector) -> None:
    await trio.sleep_forever()


if __name__ == "__main__":
    Collector.run = _on_request  # type: ignore[method-assign]
    main()
