from typing import Any

import pytest

from holdfast.actors.errors import InvalidArgument
from holdfast.storage.configchange import changed

OLD = {
    "Env": ["PATH=/bin", "A=old"],
    "Entrypoint": ["/init"],
    "Cmd": ["run"],
    "Labels": {"kept": "yes"},
    "WorkingDir": "/srv",
    "Unknown": [1],
}


@pytest.mark.parametrize(
    ("change", "key", "value"),
    [
        ('CMD ["a", "b c"]', "Cmd", ["a", "b c"]),
        ("cmd echo $A", "Cmd", ["/bin/sh", "-c", "echo $A"]),
        ("CMD [not json", "Cmd", ["/bin/sh", "-c", "[not json"]),
        ("CMD [1]", "Cmd", ["/bin/sh", "-c", "[1]"]),
        ("ENV A=1 B='two words'", "Env", ["PATH=/bin", "A=1", "B=two words"]),
        ("ENV A the rest of it", "Env", ["PATH=/bin", "A=the rest of it"]),
        ("LABEL a=1 b=2", "Labels", {"kept": "yes", "a": "1", "b": "2"}),
        ("EXPOSE 80 53/udp", "ExposedPorts", {"80/tcp": {}, "53/udp": {}}),
        ('VOLUME ["/a b", "/c"]', "Volumes", {"/a b": {}, "/c": {}}),
        ("VOLUME /a /c", "Volumes", {"/a": {}, "/c": {}}),
        ("WORKDIR sub/../dir", "WorkingDir", "/srv/dir"),
        ("WORKDIR /other", "WorkingDir", "/other"),
        ("USER 1:2", "User", "1:2"),
        ("STOPSIGNAL SIGINT", "StopSignal", "SIGINT"),
        ("ONBUILD RUN x", "OnBuild", ["RUN x"]),
    ],
)
def test_a_change_changes_its_key_and_nothing_else(change: str, key: str, value: Any) -> None:
    before = dict(OLD)
    new = changed(OLD, [change])
    assert new[key] == value
    assert {**new, key: None} == {**OLD, key: None}
    assert before == OLD


def test_a_new_entrypoint_drops_the_old_command() -> None:
    assert "Cmd" not in changed(OLD, ['ENTRYPOINT ["/new"]'])
    both = changed(OLD, ['CMD ["x"]', 'ENTRYPOINT ["/new"]'])
    assert (both["Entrypoint"], both["Cmd"]) == (["/new"], ["x"])


@pytest.mark.parametrize(
    "change",
    ["FROM x", "", "CMD", "ENV A", "ENV =x", "LABEL 'open", "EXPOSE x", "EXPOSE 80/x", "EXPOSE 0"],
)
def test_what_is_no_change_is_refused(change: str) -> None:
    with pytest.raises(InvalidArgument):
        changed(OLD, [change])
