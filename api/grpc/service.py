"""Methods by path: what a server serves.

    version = implement(DESCRIPTOR.services_by_name["Version"], {"Version": self.version})
    server = GrpcServer([version, containers, ...])

`implement` reads request, answer and kind of each method from the descriptor, so that no table of
ours can disagree with the .proto. A method without a handler answers UNIMPLEMENTED.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from inspect import isasyncgenfunction
from typing import Any

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

# unary:         async def handler(request, context) -> answer
# server stream: async def handler(request, call) -> None, and call.send(answer)
# client stream: async def handler(call) -> answer, and call.receive()
# bidi:          async def handler(call) -> None, and both
Handler = Callable[..., Awaitable[Any]]


class Kind(Enum):
    """Which side of a call sends one message, and which a stream of them."""

    UNARY = "unary"
    SERVER_STREAM = "server stream"
    CLIENT_STREAM = "client stream"
    BIDI = "bidi"


@dataclass(frozen=True, slots=True)
class Method:
    """One method: who answers it, how, and with which messages."""

    handler: Handler
    kind: Kind
    request: type[Message]
    answer: type[Message]


Service = Mapping[str, Method]


def kind_of(method: MethodDescriptor) -> Kind:
    """The kind that the .proto gives a method."""
    match (method.client_streaming, method.server_streaming):
        case (False, False):
            return Kind.UNARY
        case (False, True):
            return Kind.SERVER_STREAM
        case (True, False):
            return Kind.CLIENT_STREAM
        case _:
            return Kind.BIDI


def implement(service: ServiceDescriptor, handlers: Mapping[str, Handler]) -> Service:
    """The methods of a service for which there are handlers, by path.

    Raises KeyError for a handler whose method the service does not have, TypeError for an async
    generator: a cancel scope in one may be left in another task than it was entered in.
    """
    methods: dict[str, Method] = {}
    for name, handler in handlers.items():
        method = service.methods_by_name[name]
        if isasyncgenfunction(handler):
            raise TypeError(f"the handler of {name} is an async generator; use call.send()")
        methods[f"/{service.full_name}/{name}"] = Method(
            handler,
            kind_of(method),
            GetMessageClass(method.input_type),
            GetMessageClass(method.output_type),
        )
    return methods
