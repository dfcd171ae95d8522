"""Uploads in parts to a real registry: Debian's docker-registry on the loopback."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from clients import Giver, blob, fetched, opened_registry, pieces_of
from servers import SECRET, USER, Server, registry

from holdfast.actors.errors import Aborted, InvalidArgument, PermissionDenied, Unknown
from holdfast.storage.registry.auth import Credentials

RAW = os.urandom(300_000)
ALICE = Credentials(username=USER, secret=SECRET)


async def test_a_blob_is_sent_in_parts_and_the_registry_knows_how_far(plain: Server) -> None:
    async with opened_registry(f"{plain.authority}/parts:1") as client:
        target = blob(RAW)
        assert not await client.has(target)
        upload = await client.begin_upload(target)
        assert upload is not None
        assert (await client.upload_status(upload)).offset == 0
        upload = await client.upload_part(upload, RAW[:100_000])
        upload = await client.upload_part(upload, RAW[100_000:200_000])
        upload = await client.upload_status(upload)
        assert upload.offset == 200_000
        with pytest.raises(InvalidArgument, match="200000 bytes, not 300000"):
            await client.finish_upload(upload, target)
        await client.finish_upload(upload, target, RAW[200_000:])
        assert await client.has(target)
        assert await fetched(client, target) == RAW
        assert await fetched(client, target, 299_000) == RAW[299_000:]


@pytest.mark.parametrize("size", [0, 1, 2])
async def test_the_smallest_blobs_are_sent_too(plain: Server, size: int) -> None:
    async with opened_registry(f"{plain.authority}/small:1") as client:
        target = blob(RAW[:size])
        upload = await client.begin_upload(target)
        assert upload is not None
        if size:
            upload = await client.upload_status(await client.upload_part(upload, RAW[:size]))
            assert upload.offset == size
        await client.finish_upload(upload, target)
        assert await fetched(client, target) == RAW[:size]


async def test_what_a_registry_has_of_a_part_is_not_sent_again(plain: Server) -> None:
    """A part arrived, and nobody was told: the next one finds out."""
    async with opened_registry(f"{plain.authority}/lost:1") as client:
        target = blob(RAW)
        begun = await client.begin_upload(target)
        assert begun is not None
        after = await client.upload_part(begun, RAW[:1000])
        # As if its answer had been lost. This registry knows an upload by its last answer only,
        # and says so; another is sent what it lacks.
        with pytest.raises(Aborted, match="begin anew"):
            await client.upload_part(begun, RAW[:2000])
        await client.finish_upload(after, target, RAW[1000:])
        assert await fetched(client, target) == RAW


async def test_a_cancelled_upload_is_gone(plain: Server) -> None:
    async with opened_registry(f"{plain.authority}/gone:1") as client:
        target = blob(RAW)
        upload = await client.begin_upload(target)
        assert upload is not None
        upload = await client.upload_part(upload, RAW[:1000])
        await client.cancel_upload(upload)
        await client.cancel_upload(upload)
        with pytest.raises(Aborted):
            await client.upload_status(upload)
        with pytest.raises(Aborted):
            await client.finish_upload(upload, target, RAW[1000:])
        assert not await client.has(target)


async def test_bytes_that_are_not_the_digests_are_refused(plain: Server) -> None:
    async with opened_registry(f"{plain.authority}/wrong:1") as client:
        upload = await client.begin_upload(blob(RAW))
        assert upload is not None
        with pytest.raises(Unknown, match="DIGEST_INVALID"):
            await client.finish_upload(upload, blob(RAW), b"x" * len(RAW))


async def test_a_blob_of_another_repository_is_mounted_by_who_may_read_it(tmp_path: Path) -> None:
    target = blob(RAW)
    with registry(tmp_path / "r", auth="token") as server:
        giver = Giver(ALICE)
        async with opened_registry(f"{server.authority}/from:1", ask=giver) as client:
            await client.put_blob(target, pieces_of(RAW[:1], RAW[1:]))
        async with opened_registry(f"{server.authority}/to:1", ask=giver) as client:
            assert await client.begin_upload(target, "from") is None
            assert await client.has(target)
            # What is not there is sent.
            upload = await client.begin_upload(blob(b"other"), "from")
            assert upload is not None
            await client.finish_upload(upload, blob(b"other"), b"other")
        both = ["repository:from:pull", "repository:to:pull,push"]
        assert both in [sorted(asked.scopes) for asked in server.tokens]
        assert giver.asked == [server.authority, server.authority]
        async with opened_registry(f"{server.authority}/to:1") as client:
            with pytest.raises(PermissionDenied, match="log in to the registry"):
                await client.begin_upload(target, "from")
