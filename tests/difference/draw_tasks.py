"""Sequences about tasks: real busybox containers, in the right order and in wrong ones.

What a container does is known when it is drawn, so that a step which would wait for ever, or
whose outcome is a race, is not drawn: after what ends a process comes a Wait for it.
"""

import random
from dataclasses import dataclass, field
from typing import Any

from holdfast.api.proto import runc_pb2

from .step import PROCESS_URL, SPEC_URL, Process, Rootfs, Spec, Step, any_of

Dice = random.Random
STEPS = range(8, 26)
IDS = ("c1", "c1", "c2")
EXECS = ("e1", "e1", "e2")
CRUN = any_of("containerd.runc.v1.Options", runc_pb2.Options(binary_name="crun"))
LASTING = ("sleep", "1000")
ENDING = (("true",), ("sh", "-c", "exit 3"))


@dataclass
class Model:
    """What is known of a container while its steps are drawn."""

    lasting: bool = True
    state: str = ""
    execs: dict[str, tuple[str, bool]] = field(default_factory=dict)
    """The state of each exec, and whether it lasts."""


def sequence(dice: Dice) -> list[Step]:
    """The steps of one sequence."""
    models: dict[str, Model] = {}
    steps: list[Step] = []
    count = dice.choice(STEPS)
    while len(steps) < count:
        id = dice.choice(IDS)
        steps += _usual(dice, id, models) if dice.random() < 0.55 else _any(dice, id, models)
    return steps


def _usual(dice: Dice, id: str, models: dict[str, Model]) -> list[Step]:
    """The next step of a life that comes to its end."""
    model = models.get(id)
    if model is None:
        return _container(dice, id, models)
    match model.state:
        case "":
            return _create(id, models)
        case "created":
            return _start(id, models)
        case "running":
            verb = dice.choice((_exec, _exec, _start_exec, _kill_exec, _kill, _pause))
            return verb(dice, id, models)
        case "paused":
            return _resume(dice, id, models)
        case _:
            return _delete(dice, id, models)


def _any(dice: Dice, id: str, models: dict[str, Model]) -> list[Step]:
    """A step that the state may not allow."""
    verb = dice.choice(
        (_container, _look, _look, _look, _create_, _start_, _kill, _signal, _pause, _resume,
         _delete, _exec, _start_exec, _kill_exec, _delete_exec, _update, _unknown)
    )  # fmt: skip
    return verb(dice, id, models)


def _task(verb: str, id: str, **fields: Any) -> Step:
    return Step(f"Tasks.{verb}", {"container_id": id, **fields})


def _container(dice: Dice, id: str, models: dict[str, Model]) -> list[Step]:
    lasting = dice.random() < 0.7
    args = LASTING if lasting else dice.choice(ENDING)
    models.setdefault(id, Model(lasting))
    container = {
        "id": id,
        "runtime": {"name": "io.containerd.runc.v2", "options": CRUN},
        "spec": {"type_url": SPEC_URL, "value": Spec(id, args)},
    }
    return [Step("Containers.Create", {"container": container})]


def _create_(_: Dice, id: str, models: dict[str, Model]) -> list[Step]:
    return _create(id, models)


def _create(id: str, models: dict[str, Model]) -> list[Step]:
    model = models.get(id)
    if model is not None and not model.state:
        model.state = "created"
    mount = {"type": "bind", "source": Rootfs(), "options": ["rbind", "ro"]}
    return [_task("Create", id, rootfs=[mount])]


def _start_(_: Dice, id: str, models: dict[str, Model]) -> list[Step]:
    return _start(id, models)


def _start(id: str, models: dict[str, Model]) -> list[Step]:
    model = models.get(id)
    if model is None or model.state != "created":
        return [_task("Start", id)]
    model.state = "running" if model.lasting else "stopped"
    return [_task("Start", id)] + ([] if model.lasting else [_task("Wait", id)])


def _kill(dice: Dice, id: str, models: dict[str, Model]) -> list[Step]:
    model = models.get(id)
    step = _task("Kill", id, signal=9, all=dice.random() < 0.3)
    if model is None or model.state not in ("created", "running"):
        return [] if model is not None and model.state == "paused" else [step]
    model.state = "stopped"
    waits = [
        _task("Wait", id, exec_id=name)
        for name, (state, _) in model.execs.items()
        if state == "running"
    ]
    model.execs = {
        name: ("stopped" if state == "running" else state, lasting)
        for name, (state, lasting) in model.execs.items()
    }
    return [step, _task("Wait", id), *waits]


def _signal(dice: Dice, id: str, _: dict[str, Model]) -> list[Step]:
    # As the first of its pid namespace, sleep does not feel these.
    return [_task("Kill", id, signal=dice.choice((15, 2, 10)))]


def _pause(_: Dice, id: str, models: dict[str, Model]) -> list[Step]:
    model = models.get(id)
    if model is not None and model.state == "running":
        model.state = "paused"
    return [_task("Pause", id)]


def _resume(_: Dice, id: str, models: dict[str, Model]) -> list[Step]:
    model = models.get(id)
    if model is not None and model.state == "paused":
        model.state = "running"
    return [_task("Resume", id)]


def _delete(_: Dice, id: str, models: dict[str, Model]) -> list[Step]:
    model = models.get(id)
    if model is not None and model.state in ("created", "stopped"):
        model.state = ""
        model.execs.clear()
    return [_task("Delete", id)]


def _exec(dice: Dice, id: str, models: dict[str, Model]) -> list[Step]:
    model = models.get(id)
    name = dice.choice(EXECS) if dice.random() < 0.95 else dice.choice(("", "a/b", "-x"))
    lasting = dice.random() < 0.6
    if model is not None and model.state in ("created", "running") and name in EXECS:
        model.execs.setdefault(name, ("added", lasting))
    args = LASTING if lasting else dice.choice(ENDING)
    spec = {"type_url": PROCESS_URL, "value": Process(args)}
    return [_task("Exec", id, exec_id=name, spec=spec)]


def _start_exec(dice: Dice, id: str, models: dict[str, Model]) -> list[Step]:
    name = dice.choice(EXECS)
    model = models.get(id)
    step = _task("Start", id, exec_id=name)
    if model is None or model.state != "running":
        return [step]
    state, lasting = model.execs.get(name, ("", True))
    if state != "added":
        return [step]
    model.execs[name] = ("running" if lasting else "stopped", lasting)
    return [step] if lasting else [step, _task("Wait", id, exec_id=name)]


def _kill_exec(dice: Dice, id: str, models: dict[str, Model]) -> list[Step]:
    name = dice.choice(EXECS)
    model = models.get(id)
    step = _task("Kill", id, exec_id=name, signal=9)
    if model is None or model.execs.get(name, ("",))[0] != "running":
        return [step]
    if model.state != "running":
        return []
    model.execs[name] = ("stopped", True)
    return [step, _task("Wait", id, exec_id=name)]


def _delete_exec(dice: Dice, id: str, models: dict[str, Model]) -> list[Step]:
    name = dice.choice(EXECS)
    model = models.get(id)
    if model is not None and model.execs.get(name, ("",))[0] in ("added", "stopped"):
        del model.execs[name]
    return [_task("DeleteProcess", id, exec_id=name)]


def _update(dice: Dice, id: str, _: dict[str, Model]) -> list[Step]:
    resources = {
        "type_url": "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources",
        "value": dice.choice((b'{"pids":{"limit":50}}', b"{}", b"no json")),
    }
    return [_task("Update", id, resources=resources)]


def _look(dice: Dice, id: str, _: dict[str, Model]) -> list[Step]:
    match dice.choice(("Get", "Get", "GetExec", "List", "ListPids", "CloseIO", "ResizePty")):
        case "Get":
            return [_task("Get", id)]
        case "GetExec":
            return [_task("Get", id, exec_id=dice.choice(EXECS))]
        case "List":
            return [Step("Tasks.List", {})]
        case "CloseIO":
            return [_task("CloseIO", id, stdin=True)]
        case "ResizePty":
            return [_task("ResizePty", id, width=80, height=24)]
        case _:
            return [_task("ListPids", id)]


def _unknown(dice: Dice, _: str, __: dict[str, Model]) -> list[Step]:
    verb = dice.choice(("Get", "Start", "Kill", "Delete", "Pause", "Wait", "Exec", "DeleteProcess"))
    fields = {"exec_id": "e1"} if verb in ("Exec", "DeleteProcess") else {}
    return [_task(verb, dice.choice(("none", "", "a/b")), **fields)]
