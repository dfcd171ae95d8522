"""Sources: the repositories of a registry that a blob is known to be in, as its labels tell.

    containerd.io/distribution.source.HOST: team/box,team/tool

A push to that registry may have the blob mounted from there.
"""

from collections.abc import Mapping, Sequence

from ..content import ContentStore
from ..labels import LABEL_BYTES_MAX
from .hosts import Remote

SOURCE_LABEL = "containerd.io/distribution.source."


def sources_of(labels: Mapping[str, str], host: str) -> Sequence[str]:
    """The repositories of a registry that the labels of a blob name."""
    return [one for one in labels.get(SOURCE_LABEL + host, "").split(",") if one]


async def note_source(content: ContentStore, namespace: str, digest: str, remote: Remote) -> None:
    """Let a blob tell that a repository has it too, if a label holds that many; NotFound when
    there is no such blob."""
    known = sources_of(content.info(namespace, digest).labels, remote.host)
    if remote.repository in known:
        return
    key, value = SOURCE_LABEL + remote.host, ",".join(sorted([*known, remote.repository]))
    if len(key) + len(value) <= LABEL_BYTES_MAX:
        await content.update(namespace, digest, {key: value}, [f"labels.{key}"])
