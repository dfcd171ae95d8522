import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.actors.errors import InvalidArgument, NotFound, Refusal
from holdfast.runtime.spec import User
from holdfast.runtime.users import ID_MAX, Accounts, resolve_user

ACCOUNTS = Accounts(
    passwd=b"root:x:0:0:root:/root:/bin/sh\n# a comment\nuser:x:1000:100::/home:/bin/sh\n:::\n",
    group=b"root:x:0:\nusers:x:100:user\nstaff:x:50:other,user\nwheel:x:10:user\n",
)


@pytest.mark.parametrize(
    ("text", "user"),
    [
        ("root", User(uid=0, gid=0)),
        ("user", User(uid=1000, gid=100, groups=(10, 50))),
        ("1000", User(uid=1000, gid=100, groups=(10, 50))),
        ("1234", User(uid=1234, gid=0)),
        ("user:staff", User(uid=1000, gid=50)),
        ("1234:10", User(uid=1234, gid=10)),
        ("1234:77", User(uid=1234, gid=77)),
    ],
)
def test_a_user_is_looked_up_in_the_containers_own_files(text: str, user: User) -> None:
    assert resolve_user(text, ACCOUNTS) == user


@pytest.mark.parametrize("text", ["nobody", "root:nogroup"])
def test_an_unknown_name_is_not_found(text: str) -> None:
    with pytest.raises(NotFound):
        resolve_user(text, ACCOUNTS)


@pytest.mark.parametrize(
    "text", ["", ":", "root:", ":0", "-1", "+1", "2147483648", "4294967296", "99999999999999999999"]
)
def test_a_malformed_user_or_an_id_out_of_range_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        resolve_user(text, ACCOUNTS)


def test_what_looks_numeric_is_never_looked_up_as_a_name() -> None:
    trap = Accounts(passwd=b"4294967296:x:0:0::/:/bin/sh\n")
    with pytest.raises(InvalidArgument):
        resolve_user("4294967296", trap)


def test_a_file_without_end_is_read_within_bounds() -> None:
    huge = Accounts(passwd=b"x:x:5:5\n" * 400_000 + b"late:x:7:7\n")
    with pytest.raises(NotFound):
        resolve_user("late", huge)


@given(st.text(), st.binary(), st.binary())
def test_strange_files_give_an_id_within_range_or_a_refusal(
    text: str, passwd: bytes, group: bytes
) -> None:
    try:
        user = resolve_user(text, Accounts(passwd=passwd, group=group))
    except Refusal:
        return
    assert 0 <= user.uid <= ID_MAX
    assert 0 <= user.gid <= ID_MAX
