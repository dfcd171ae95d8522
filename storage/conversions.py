"""Conversions as jobs: an image converted and named, under a lease."""

from collections.abc import Mapping
from dataclasses import dataclass

from .content import ContentStore
from .convert import Conversion, Converter
from .images import Image, Images
from .leases import Leases


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """What an image has become; `changed` is False where there was nothing to do."""

    image: Image
    changed: bool


class Conversions:
    """The verb."""

    def __init__(self, content: ContentStore, images: Images, leases: Leases) -> None:
        self._content = content
        self._images = images
        self._leases = leases

    async def convert(
        self,
        namespace: str,
        source: str,
        name: str,
        wish: Conversion,
        labels: Mapping[str, str] | None = None,
    ) -> Converted:
        """Convert an image and give the result a name, which may be the same one."""
        target = self._images.get(namespace, source).target
        async with self._leases.held(namespace) as lease:
            made = await Converter(self._content, namespace, wish, lease).convert(target)
            image = Image(name=name, target=made, labels=labels or {})
            image = await self._images.put(namespace, image)
        return Converted(image=image, changed=made.digest != target.digest)
