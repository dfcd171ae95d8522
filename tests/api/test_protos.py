"""The .proto text is the wire that clients know, and the generated Python is its faithful copy."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import (
    Descriptor,
    EnumDescriptor,
    FieldDescriptor,
    FileDescriptor,
    ServiceDescriptor,
)

import holdfast
from holdfast.api.proto.generate import generate, main, proto_files

SOURCE = Path(holdfast.__path__[0]).parent
FACTS: dict[str, dict[str, Any]] = json.loads((SOURCE / "holdfast/api/wire_facts.json").read_text())
# Ours beyond containerd's: the standard health service, and packages of our own.
BEYOND = ("grpc.health.v1.", "holdfast.")

SCALARS = {
    getattr(FieldDescriptor, f"TYPE_{name.upper()}"): name
    for name in [
        "double",
        "float",
        "int32",
        "int64",
        "uint32",
        "uint64",
        "sint32",
        "sint64",
        "fixed32",
        "fixed64",
        "sfixed32",
        "sfixed64",
        "bool",
        "string",
        "bytes",
    ]
}


def files() -> list[FileDescriptor]:
    found: list[FileDescriptor] = []
    for path in proto_files(SOURCE):
        module = import_module(".".join(path.with_suffix("").parts) + "_pb2")
        found.append(module.DESCRIPTOR)
    return found


def type_name(field: FieldDescriptor) -> str:
    if field.message_type is not None:
        if field.message_type.GetOptions().map_entry:
            key, value = (field.message_type.fields_by_name[n] for n in ("key", "value"))
            return f"map<{type_name(key)},{type_name(value)}>"
        return str(field.message_type.full_name)
    if field.enum_type is not None:
        return str(field.enum_type.full_name)
    return SCALARS[field.type]


def field_fact(field: FieldDescriptor) -> dict[str, Any]:
    fact: dict[str, Any] = {"n": field.number, "name": field.name, "type": type_name(field)}
    is_map = fact["type"].startswith("map<")
    if field.is_repeated and not is_map:
        fact["repeated"] = True
    elif field.containing_oneof is not None:
        fact["optional"] = True
    return fact


def gather() -> dict[str, dict[str, Any]]:
    messages: dict[str, Any] = {}
    enums: dict[str, Any] = {}
    services: dict[str, Any] = {}

    def add_enum(enum: EnumDescriptor) -> None:
        enums[enum.full_name] = {value.name: value.number for value in enum.values}

    def add_message(message: Descriptor) -> None:
        if message.GetOptions().map_entry:
            return
        messages[message.full_name] = [field_fact(field) for field in message.fields]
        for nested in message.nested_types:
            add_message(nested)
        for enum in message.enum_types:
            add_enum(enum)

    def add_service(service: ServiceDescriptor) -> None:
        methods: dict[str, Any] = {}
        for method in service.methods:
            fact: dict[str, Any] = {
                "request": method.input_type.full_name,
                "answer": method.output_type.full_name,
            }
            if method.client_streaming:
                fact["client_stream"] = True
            if method.server_streaming:
                fact["server_stream"] = True
            methods[method.name] = fact
        services[service.full_name] = methods

    for file in files():
        for message in file.message_types_by_name.values():
            add_message(message)
        for enum in file.enum_types_by_name.values():
            add_enum(enum)
        for service in file.services_by_name.values():
            add_service(service)
    return {"messages": messages, "enums": enums, "services": services}


def by_number(fields: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(fields, key=lambda field: int(field["n"]))


@pytest.mark.parametrize("kind", ["messages", "enums", "services"])
def test_every_fact_of_the_wire_is_in_the_descriptors_and_nothing_else_is(kind: str) -> None:
    ours = {k: v for k, v in gather()[kind].items() if not k.startswith(BEYOND)}
    facts = dict(FACTS[kind])
    if kind == "messages":
        ours = {k: by_number(v) for k, v in ours.items()}
        facts = {k: by_number(v) for k, v in facts.items()}
    assert set(ours) == set(facts)
    for name, fact in facts.items():
        assert ours[name] == fact, name


def test_the_health_service_is_the_standard_one() -> None:
    ours = gather()
    assert ours["enums"]["grpc.health.v1.HealthCheckResponse.ServingStatus"] == {
        "UNKNOWN": 0,
        "SERVING": 1,
        "NOT_SERVING": 2,
        "SERVICE_UNKNOWN": 3,
    }
    assert ours["services"]["grpc.health.v1.Health"]["Watch"]["server_stream"] is True
    assert ours["messages"]["grpc.health.v1.HealthCheckRequest"] == [
        {"n": 1, "name": "service", "type": "string"}
    ]


def test_every_message_can_be_found_by_the_name_that_an_any_carries() -> None:
    pool = descriptor_pool.Default()
    files()
    for name in FACTS["messages"]:
        assert pool.FindMessageTypeByName(name).full_name == name


def test_the_checked_in_python_is_what_the_text_generates(tmp_path: Path) -> None:
    written = generate(SOURCE, tmp_path)
    for path in written:
        for suffix in ("_pb2.py", "_pb2.pyi"):
            name = path.with_name(path.stem + suffix)
            assert (tmp_path / name).read_text() == (SOURCE / name).read_text(), name


def test_the_tool_generates_in_place(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Path] = []

    def pretend(source: Path, target: Path) -> list[Path]:
        asked.extend([source, target])
        return []

    monkeypatch.setattr("holdfast.api.proto.generate.generate", pretend)
    assert main() == 0
    assert asked == [SOURCE, SOURCE]
    assert capsys.readouterr().out == "0 files\n"


def test_text_that_protoc_refuses_is_an_error(tmp_path: Path) -> None:
    source = tmp_path / "holdfast/api/proto"
    source.mkdir(parents=True)
    (source / "broken.proto").write_text("this is no proto")
    with pytest.raises(RuntimeError, match="status 1"):
        generate(tmp_path, tmp_path)
