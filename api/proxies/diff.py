"""A differ that another process serves by containerd.services.diff.v1."""

from collections.abc import Mapping, Sequence

from google.protobuf.any_pb2 import Any as AnyMessage

from ...storage.containers import Opaque
from ...storage.descriptor import Descriptor
from ...storage.differs import Wanted
from ...storage.digest import check_digest
from ...storage.mounts import Mount
from ..anys import timestamp
from ..proto.services import diff_pb2 as pb
from ..types import descriptor_from, descriptor_to, mounts_to
from .proxy import Proxy

SERVICE = "/containerd.services.diff.v1.Diff"


class ProxiedDiffer:
    """The `FarDiffer` of storage, over the wire."""

    def __init__(self, proxy: Proxy, media_types: Sequence[str]) -> None:
        self.name = proxy.name
        self.media_types = media_types
        self._proxy = proxy

    async def apply(
        self,
        namespace: str,
        layer: Descriptor,
        mounts: Sequence[Mount],
        payloads: Mapping[str, Opaque],
        *,
        sync: bool,
    ) -> Descriptor:
        request = pb.ApplyRequest(
            diff=descriptor_to(layer),
            mounts=mounts_to(mounts),
            payloads={
                kind: AnyMessage(type_url=payload.type_url, value=payload.value)
                for kind, payload in payloads.items()
            },
            sync_fs=sync,
        )
        method = f"{SERVICE}/Apply"
        answer = await self._proxy.unary(method, request, pb.ApplyResponse, namespace)
        return self._checked(descriptor_from(answer.applied))

    async def diff(
        self, namespace: str, lower: Sequence[Mount], upper: Sequence[Mount], wanted: Wanted
    ) -> Descriptor:
        request = pb.DiffRequest(
            left=mounts_to(lower),
            right=mounts_to(upper),
            media_type=wanted.media_type,
            ref=wanted.ref,
            labels=wanted.labels,
        )
        if wanted.epoch_ns is not None:
            # The epoch itself is a moment too, and no absent field.
            request.source_date_epoch.SetInParent()
            if moment := timestamp(wanted.epoch_ns):
                request.source_date_epoch.CopyFrom(moment)
        answer = await self._proxy.unary(f"{SERVICE}/Diff", request, pb.DiffResponse, namespace)
        return self._checked(descriptor_from(answer.diff))

    def _checked(self, answered: Descriptor) -> Descriptor:
        check_digest(answered.digest, f"answer of proxy plugin {self.name}")
        return answered
