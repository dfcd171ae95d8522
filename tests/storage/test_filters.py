"""Filters are read as containerd's clients write them."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.actors.errors import InvalidArgument
from holdfast.storage.filters import Adaptor, compile_filters, compile_pattern, unquote


@dataclass(frozen=True)
class Thing:
    name: str = ""
    other: str = ""
    labels: dict[str, str] = field(default_factory=dict)

    def adaptor(self) -> Adaptor:
        def adapt(path: Sequence[str]) -> tuple[str, bool]:
            match path:
                case ["name", *_]:
                    return self.name, bool(self.name)
                case ["other", *_]:
                    return self.other, bool(self.other)
                case ["labels", *rest]:
                    key = ".".join(rest)
                    return self.labels.get(key, ""), key in self.labels
                case _:
                    return "", False

        return adapt


THINGS = (
    Thing("foo", labels={"foo": "true"}),
    Thing("bar"),
    Thing("foo", labels={"foo": "present", "a longer label": "present"}),
    Thing("bar", labels={"bar": "true"}),
    Thing("fooer", labels={'with \\ and "': "present"}),
    Thing("fooer", labels={'with \\ and ".post': "present"}),
    Thing("baz", other="too complex, yo"),
    Thing("bazo", other="abc"),
    Thing("compound", labels={"foo": "omg_asdf.asdf-qwer"}),
)
ALL = list(range(len(THINGS)))


def chosen(*filters: str) -> list[int]:
    accepts = compile_filters(filters)
    return [index for index, thing in enumerate(THINGS) if accepts(thing.adaptor())]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ((), ALL),
        (("",), ALL),
        (("name==none", ""), ALL),
        (("name",), ALL),
        (("labels.foo",), [0, 2, 8]),
        (("labels.foo,name",), [0, 2, 8]),
        (("labels.foo , name",), None),
        (("labels.foo==true",), [0]),
        (("labels.foo==omg_asdf.asdf-qwer",), [8]),
        (("name==bar",), [1, 3]),
        (("name== bar",), [1, 3]),
        (("name!=bar",), [0, 2, 4, 5, 6, 7, 8]),
        (("labels.foo!=true",), [1, 2, 3, 4, 5, 6, 7, 8]),
        (("name==bar,labels.bar",), [3]),
        (("name==bar", "other==abc"), [1, 3, 7]),
        (('other=="too complex, yo"',), [6]),
        (("other~=[abc]+,name!=foo",), [6, 7]),
        (("other~=/[abc]+/,name!=foo",), [6, 7]),
        (("other~=|[abc]{1,2}|,name!=foo",), [6, 7]),
        (('other~=/[abc]{0,1}"\\//,name!=foo',), []),
        (("name~=^ba.$",), [1, 3, 6]),
        (("name~=(",), []),
        (("other~=",), None),
        (('name==foo,labels."a longer label"',), [2]),
        (('labels."with \\\\ and \\""==present',), [4]),
        (('labels."with \\\\ and \\"".post==present',), [5]),
        (("unknown",), []),
        (("unknown!=x",), ALL),
        (("name==\u00e9",), []),
    ],
)
def test_a_filter_chooses(filters: Sequence[str], expected: list[int] | None) -> None:
    if expected is None:
        with pytest.raises(InvalidArgument):
            chosen(*filters)
    else:
        assert chosen(*filters) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("labels.|foo|==x", "[labels. >|||< foo|==x]: invalid quote encountered"),
        ("labels.?foo", "[labels. >|?|< foo]: expected field or quoted"),
        ("name==foo,", "[name==foo,]: expected field or quoted"),
        ("labels.", "[labels.]: expected field or quoted"),
        ("image~=,id?=?fbaq", "[image~= >|,|< id?=?fbaq]: expected value or quoted"),
        ("labels.ns/key==value", "[labels.ns >|/|< key==value]: quoted literal not terminated"),
        ("labels.key==/value", "[labels.key== >|/|< value]: quoted literal not terminated"),
        ("name=foo", '[name >|=|< foo]: unsupported operator "="'),
        ("name foo", '[name  >|f|< oo]: expected an operator ("=="|"!="|"~=")'),
        ("name==", "[name==]: expected value or quoted"),
        ('name=="a"b', '[name=="a" >|b|< ]: unexpected input: b'),
        ('name=="\\q"', '[name== >|"|< \\q"]: illegal escape sequence'),
        ('name=="\\x1"', '[name== >|"|< \\x1"]: illegal numeric escape sequence'),
        ('name=="\\777"', '[name== >|"|< \\777"]: unquoting failed: quote syntax error'),
        ('name=="\\UFFFFFFFF"', "unquoting failed: quote syntax error"),
        ('name=="a\nb"', "quoted literal not terminated"),
        ("name\0", "unexpected null"),
        ("name==\ufffd", "rune error"),
        ("/a/==b", "invalid quote encountered"),
    ],
)
def test_a_refusal_marks_the_place(text: str, why: str) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        compile_filters([text])
    assert str(refusal.value).startswith("filters: parse error: [")
    assert str(refusal.value).endswith(f"{why}: invalid argument")


@pytest.mark.parametrize(
    ("literal", "text"),
    [
        ('"\\a\\b\\f\\n\\r\\t\\v\\\\\\""', '\a\b\f\n\r\t\v\\"'),
        ("/\\//", "/"),
        ("|\\||", "|"),
        ('"\\x41\\101\\u00e9\\U0001F600"', "AA\u00e9\U0001f600"),
        ('"\\xc3\\xa9"', "\u00e9"),
        ('"\\xff"', "\udcff"),
        ('"\\ud800"', "\ufffd"),
    ],
)
def test_escapes_are_gos(literal: str, text: str) -> None:
    assert unquote(literal) == text


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        ("^a$", "a\n", False),
        (r"a\z", "a", True),
        ("(?m)^a$", "a\nb", True),
        ("[[:alpha:]]+[[:digit:]]", "ab1", True),
        ("^[[:alpha:][:digit:]]+$", "ab1", True),
        ("[[:nonsense:]]", "a", False),
        ("[[]", "[", True),
        ("a(?=b)", "ab", False),
        (r"(a)\1", "aa", False),
        (r"\\1", "\\1", True),
        (r"[$]", "$", True),
        (r"\$", "$", True),
        ("[a||b]", "|", True),
        ("(?P<x>a)", "a", True),
        ("(", "(", False),
        ("", "anything", True),
    ],
)
def test_patterns_mean_what_they_mean_to_re2(pattern: str, text: str, matches: bool) -> None:
    compiled = compile_pattern(pattern)
    assert (compiled is not None and compiled.search(text) is not None) == matches


# A tiny reference: selectors are drawn as data, written as text, and judged without the parser.
PATHS = st.sampled_from([("name",), ("other",), ("labels", "a"), ("labels", "a.b"), ("no",)])
TEXTS = st.text(st.sampled_from('ab,"\\/| .=!~é\t'), max_size=4)
SELECTORS = st.tuples(PATHS, st.sampled_from(["", "==", "!=", "~="]), TEXTS)


def written(selector: tuple[tuple[str, ...], str, str]) -> str:
    path, operator, value = selector
    fields = [part if part.isalnum() else json.dumps(part) for part in path]
    plain = value.isalnum() and value.isascii()
    if operator == "~=":
        value = re.escape(value)
    text = value if plain else json.dumps(value, ensure_ascii=False)
    return ".".join(fields) + operator + (text if operator else "")


def judged(selector: tuple[tuple[str, ...], str, str], thing: Thing) -> bool:
    path, operator, value = selector
    text, present = thing.adaptor()(path)
    return {
        "": present,
        "==": present and text == value,
        "!=": text != value,
        "~=": value in text,
    }[operator]


@given(
    st.lists(st.lists(SELECTORS, min_size=1, max_size=3), max_size=3),
    st.builds(Thing, TEXTS, TEXTS, st.dictionaries(st.sampled_from(["a", "a.b"]), TEXTS)),
)
def test_filters_agree_with_the_reference(
    filters: list[list[tuple[tuple[str, ...], str, str]]], thing: Thing
) -> None:
    accepts = compile_filters([",".join(map(written, one)) for one in filters])
    expected = not filters or any(all(judged(s, thing) for s in one) for one in filters)
    assert accepts(thing.adaptor()) == expected


@given(st.text() | st.text(st.sampled_from('ab,."\\/|=!~ x1(\n\0')))
def test_any_text_is_read_or_refused(text: str) -> None:
    # Any other exception would be a fault that a client can cause.
    with contextlib.suppress(InvalidArgument):
        compile_filters([text])(Thing("a").adaptor())
