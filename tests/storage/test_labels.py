"""Names and labels are checked as containerd checks them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.actors.errors import FailedPrecondition, InvalidArgument
from holdfast.storage.labels import (
    check_identifier,
    check_label,
    check_labels,
    check_namespace,
    map_field,
    masked_labels,
    quoted,
)


@pytest.mark.parametrize("name", ["a", "A1", "a.b", "a_b-c", "0", "x" * 76])
def test_identifiers_are_accepted(name: str) -> None:
    check_identifier(name)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "identifier must not be empty: invalid argument"),
        (
            "x" * 77,
            f'identifier "{"x" * 77}" greater than maximum length (76 characters): '
            "invalid argument",
        ),
        (
            "a--b",
            'identifier "a--b" must match ^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$: '
            "invalid argument",
        ),
        *((name, "invalid argument") for name in (".a", "a.", "a/b", "a\n", "é", "..", " ")),
    ],
)
def test_what_is_no_identifier_is_refused(name: str, why: str) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(why)):
        check_identifier(name)


@given(st.text(st.sampled_from("aZ0._-/é\n"), max_size=8))
def test_identifiers_are_alphanumerics_with_single_separators(name: str) -> None:
    sound = name.isascii() and all(part.isalnum() for part in re.split("[._-]", name))
    try:
        check_identifier(name)
    except InvalidArgument:
        assert not sound
    else:
        assert sound


def test_a_namespace_is_required() -> None:
    check_namespace("k8s.io")
    with pytest.raises(FailedPrecondition, match=r"^namespace is required: failed precondition$"):
        check_namespace("")
    with pytest.raises(InvalidArgument, match=r"^namespace validation: identifier"):
        check_namespace("a b")


def test_a_label_has_a_largest_size() -> None:
    check_label("k" * 96, "v" * 4000)
    check_labels("image.Labels", {"k" * 96: "v" * 4000})
    key = "k" * 97
    why = (
        "label key and value length (4097 bytes) greater than maximum size (4096 bytes),"
        f" key: {key[:64]}: invalid argument"
    )
    with pytest.raises(InvalidArgument, match=f"^{re.escape(why)}$"):
        check_label(key, "v" * 4000)
    with pytest.raises(InvalidArgument, match=f"^{re.escape('image.Labels: ' + why)}$"):
        check_labels("image.Labels", {key: "v" * 4000})


def test_a_label_counts_bytes() -> None:
    with pytest.raises(InvalidArgument, match="4098 bytes"):
        check_label("é", "é" * 2048)


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ((), {"b": "2"}),
        (("labels",), {"b": "2"}),
        (("labels.b",), {"a": "1", "b": "2"}),
        (("labels.a",), {}),
        (("labels.c",), {"a": "1"}),
        (("labels.a", "labels.b"), {"b": "2"}),
    ],
)
def test_a_mask_says_which_labels_change(paths: tuple[str, ...], expected: object) -> None:
    assert masked_labels({"a": "1"}, {"b": "2", "c": ""}, paths) == expected


def test_a_filter_takes_the_rest_of_the_path_as_one_key() -> None:
    assert map_field({"a.b/c": "x"}, ["a", "b/c"]) == ("x", True)
    assert map_field({"a": ""}, ["a"]) == ("", True)
    assert map_field({}, ["a"]) == ("", False)


def test_names_are_shown_in_quotes() -> None:
    assert quoted('a"b\\é\n') == '"a\\"b\\\\é\\n"'
