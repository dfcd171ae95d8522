"""A round's sandbox: containers join it, and it must outlive the harm with its one process."""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from google.protobuf.message import Message

from holdfast.actors.errors import AlreadyExists, FailedPrecondition, NotFound
from holdfast.api.anys import SPEC_URL
from holdfast.api.proto.services import sandbox_pb2 as pb

from .client import Client
from .containers import CGROUP_PARENT
from .history import Trouble

SANDBOXER = "shim"


@asynccontextmanager
async def sandbox(client: Client, name: str, group: str) -> AsyncGenerator[str]:
    """One that is there for a block. Trouble, when its process is not the same at the end."""

    async def ask(verb: str, request: Message, answer_type: type[Any]) -> Any:
        return await client.insist(f"Sandboxes.{verb}", request, answer_type, subject=name)

    create = pb.ControllerCreateRequest(sandbox_id=name, sandboxer=SANDBOXER)
    create.sandbox.sandbox_id = name
    create.sandbox.spec.type_url = SPEC_URL
    linux = {"cgroupsPath": f"/{CGROUP_PARENT}/{group}/{name}"}
    create.sandbox.spec.value = json.dumps({"linux": linux}).encode()
    try:
        await ask("Create", create, pb.ControllerCreateResponse)
    except AlreadyExists:
        pass
    start = pb.ControllerStartRequest(sandbox_id=name, sandboxer=SANDBOXER)
    try:
        await ask("Start", start, pb.ControllerStartResponse)
    except FailedPrecondition:
        pass
    status = pb.ControllerStatusRequest(sandbox_id=name, sandboxer=SANDBOXER)
    before = await ask("Status", status, pb.ControllerStatusResponse)
    yield name
    after = await ask("Status", status, pb.ControllerStatusResponse)
    if (before.pid, "SANDBOX_READY") != (after.pid, after.state):
        text = f"was {before.state} {before.pid}, is {after.state} {after.pid}"
        client.history.add(Trouble(subject=name, text=text))
    shutdown = pb.ControllerShutdownRequest(sandbox_id=name, sandboxer=SANDBOXER)
    try:
        await ask("Shutdown", shutdown, pb.ControllerShutdownResponse)
    except NotFound:
        pass
