"""The wire in protobuf: our own text of the messages and services that containerd's clients speak.

Package, message, field and method names and numbers are the wire and stay as clients know them
(`api/wire_facts.json` lists them, a test compares). File paths are not wire; ours are flat:

    events_pb2, types_pb2, task_types_pb2       containerd.events, .types, .v1.types
    transfer_types_pb2, runc_pb2                containerd.types.transfer, .runc.v1
    services.<name>_pb2                         containerd.services.<name>.v1; events_ttrpc too
    shim.task_v2_pb2, task_v3_pb2               containerd.task.v2, .v3
    shim.sandbox_pb2, bootstrap_pb2             containerd.runtime.sandbox.v1, .bootstrap.v1
    cgroups_v1_pb2, cgroups_v2_pb2              io.containerd.cgroups.v1, .v2
    cri_pb2, runtimeoptions_pb2                 runtime.v1, runtimeoptions.v1
    health_pb2, rpc_status_pb2, ttrpc_pb2       grpc.health.v1, google.rpc, ttrpc

So: `from holdfast.api.proto.services.tasks_pb2 import CreateTaskRequest`.

The `_pb2.py` and `_pb2.pyi` files are written by `python -m holdfast.api.proto.generate`, never
by hand; a test regenerates them and finds no difference.
"""
