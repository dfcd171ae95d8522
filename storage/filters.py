"""Filters: containerd's language for choosing objects by their fields.

    selectors = selector ("," selector)*            all must match
    selector  = path [operator value]               without an operator: the field is present
    path      = field ("." field)*
    field     = quoted | [-_A-Za-z0-9]+
    operator  = "==" | "!=" | "~="                  "~=" searches for a regular expression
    value     = quoted | anything up to "," or white space
    quoted    = "..." with Go's escapes; after "~=" also /.../ and |...|

Of several filters one must match; an empty one, or none at all, matches everything. Example:
`name==web,labels."com.example/tier"~=/^(a|b)$/`.

What is filtered is an adaptor: a function from a path to the field's text and its presence.
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from ..actors.errors import InvalidArgument
from .labels import quoted

Adaptor = Callable[[Sequence[str]], tuple[str, bool]]
Filter = Callable[[Adaptor], bool]

OPERATORS = ("==", "!=", "~=")
QUOTES = '"/|'
OPERATOR_RUNES = "=!~"
SEPARATORS = ",."


def compile_filters(filters: Sequence[str]) -> Filter:
    """The filter that is true where any of `filters` is; true everywhere when there are none.

    `InvalidArgument` when one does not parse, with the place marked `>|here|<`.
    """
    alternatives = [parse(text) for text in filters]
    if not alternatives or [] in alternatives:
        return lambda _: True
    return lambda adaptor: any(
        all(selector.matches(adaptor) for selector in selectors) for selectors in alternatives
    )


def compile_wrapped(filters: Sequence[str]) -> Filter:
    """The same, for the lists in which containerd says twice what kind of refusal it is."""
    try:
        return compile_filters(filters)
    except InvalidArgument as error:
        raise InvalidArgument(f"{error}: invalid argument") from error


@dataclass(frozen=True, slots=True)
class Selector:
    """One condition on one field. An empty operator asks for presence."""

    path: tuple[str, ...]
    operator: str = ""
    value: str = ""
    pattern: re.Pattern[str] | None = None

    def matches(self, adaptor: Adaptor) -> bool:
        """True when the field meets the condition. An absent field is unequal to everything."""
        text, present = adaptor(self.path)
        match self.operator:
            case "==":
                return present and text == self.value
            case "!=":
                return text != self.value
            case "~=":
                return self.pattern is not None and self.pattern.search(text) is not None
            case _:
                return present


def parse(text: str) -> list[Selector]:
    """The selectors of one filter; none for the empty one."""
    return _Parser(text).selectors() if text else []


class _Token(Enum):
    END = auto()
    FIELD = auto()
    VALUE = auto()
    QUOTED = auto()
    SEPARATOR = auto()
    OPERATOR = auto()
    ILLEGAL = auto()
    OTHER = auto()


class _Malformed(Exception):
    """What is wrong with a quoted literal."""


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        # After an operator any run of visible characters is a value.
        self._value_next = False
        self._why = ""

    def selectors(self) -> list[Selector]:
        result = [self._selector()]
        while self._at < len(self._text):
            rune = self._text[self._at]
            if rune != ",":
                raise self._refusal(self._at, f"unexpected input: {rune}")
            self._scan()
            result.append(self._selector())
        return result

    def _selector(self) -> Selector:
        path = [self._field()]
        while self._text.startswith(".", self._at):
            self._scan()
            path.append(self._field())
        if self._at == len(self._text) or self._text[self._at] == ",":
            return Selector(tuple(path))
        operator = self._operator()
        value = self._value(other_quotes=operator == "~=")
        pattern = compile_pattern(value) if operator == "~=" else None
        return Selector(tuple(path), operator, value, pattern)

    def _field(self) -> str:
        start, token, text = self._scan()
        match token:
            case _Token.FIELD:
                return text
            case _Token.QUOTED:
                return self._unquote(start, text, other_quotes=False)
            case _Token.ILLEGAL:
                raise self._refusal(start, self._why)
            case _:
                raise self._refusal(start, "expected field or quoted")

    def _operator(self) -> str:
        start, token, text = self._scan()
        if token is _Token.ILLEGAL:
            raise self._refusal(start, self._why)
        if token is not _Token.OPERATOR:
            raise self._refusal(start, 'expected an operator ("=="|"!="|"~=")')
        if text not in OPERATORS:
            raise self._refusal(start, f"unsupported operator {quoted(text)}")
        return text

    def _value(self, *, other_quotes: bool) -> str:
        start, token, text = self._scan()
        match token:
            case _Token.VALUE | _Token.FIELD:
                return text
            case _Token.QUOTED:
                return self._unquote(start, text, other_quotes=other_quotes)
            case _Token.ILLEGAL:
                raise self._refusal(start, self._why)
            case _:
                raise self._refusal(start, "expected value or quoted")

    def _unquote(self, start: int, literal: str, *, other_quotes: bool) -> str:
        if literal[0] != '"' and not other_quotes:
            raise self._refusal(start, "invalid quote encountered")
        try:
            return unquote(literal)
        except ValueError as error:
            raise self._refusal(start, f"unquoting failed: {error}") from error

    def _scan(self) -> tuple[int, _Token, str]:
        """The next token: where it starts, what it is, its text. White space before is skipped."""
        text, length = self._text, len(self._text)
        while self._at < length and text[self._at].isspace():
            self._at += 1
        start = self._at
        if start == length:
            return start, _Token.END, ""
        rune = text[start]
        self._at += 1
        if rune in "\0\ufffd" or "\ud800" <= rune <= "\udfff":
            self._why = "unexpected null" if rune == "\0" else "rune error"
            return start, _Token.ILLEGAL, rune
        if rune in QUOTES:
            try:
                self._at = _end_of_quoted(text, self._at, rune)
            except _Malformed as error:
                self._why = str(error)
                return start, _Token.ILLEGAL, rune
            return start, _Token.QUOTED, text[start : self._at]
        if rune in SEPARATORS:
            self._value_next = False
            return start, _Token.SEPARATOR, rune
        if rune in OPERATOR_RUNES:
            self._take(lambda other: other in OPERATOR_RUNES)
            self._value_next = True
            return start, _Token.OPERATOR, text[start : self._at]
        if self._value_next:
            self._take(_is_value_rune)
            self._value_next = False
            return start, _Token.VALUE, text[start : self._at]
        if _is_field_rune(rune):
            self._take(_is_field_rune)
            return start, _Token.FIELD, text[start : self._at]
        return start, _Token.OTHER, rune

    def _take(self, belongs: Callable[[str], bool]) -> None:
        while self._at < len(self._text) and belongs(self._text[self._at]):
            self._at += 1

    def _refusal(self, at: int, why: str) -> InvalidArgument:
        text = self._text
        place = f"{text[:at]} >|{text[at]}|< {text[at + 1 :]}" if at < len(text) else text
        return InvalidArgument(f"filters: parse error: [{place}]: {why}: invalid argument")


def _is_field_rune(rune: str) -> bool:
    return rune.isascii() and (rune.isalnum() or rune in "-_")


def _is_value_rune(rune: str) -> bool:
    # Letters, marks, numbers, punctuation, symbols: everything that leaves ink.
    return rune != "," and not rune.isspace() and unicodedata.category(rune)[0] in "LMNPS"


ESCAPES = {
    "a": "\a",
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "v": "\v",
    "\\": "\\",
}
NUMERIC_ESCAPES = {"x": 2, "u": 4, "U": 8}


def _end_of_quoted(text: str, at: int, quote: str) -> int:
    """One past the closing quote of the literal whose content begins at `at`."""
    why = ""
    while at < len(text) and text[at] not in (quote, "\n"):
        if text[at] != "\\":
            at += 1
            continue
        at += 1
        escape = text[at : at + 1]
        if escape in ESCAPES or escape == quote:
            at += len(escape)
        elif escape in NUMERIC_ESCAPES or escape in "01234567":
            digits, base = (
                (NUMERIC_ESCAPES[escape], "0123456789abcdefABCDEF")
                if escape in NUMERIC_ESCAPES
                else (3, "01234567")
            )
            at += escape in NUMERIC_ESCAPES
            for _ in range(digits):
                if at == len(text) or text[at] not in base:
                    why = why or "illegal numeric escape sequence"
                    break
                at += 1
        else:
            why = why or "illegal escape sequence"
    if at == len(text) or text[at] == "\n":
        raise _Malformed(why or "quoted literal not terminated")
    if why:
        raise _Malformed(why)
    return at + 1


_ESCAPE = re.compile(
    r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3})|(.))|([^\\]+)",
    re.DOTALL,
)


def unquote(literal: str) -> str:
    """The text that a quoted literal stands for. ValueError when an escape has no meaning.

    Bytes given as \\x or octal that are no UTF-8 equal no valid text.
    """
    quote, body = literal[0], literal[1:-1]
    result = bytearray()
    for found in _ESCAPE.finditer(body):
        hexadecimal, short, long, octal, single, plain = found.groups()
        if plain is not None:
            result += plain.encode("utf-8", "surrogatepass")
        elif hexadecimal is not None:
            result.append(int(hexadecimal, 16))
        elif octal is not None:
            value = int(octal, 8)
            if value > 255:
                raise ValueError("quote syntax error")
            result.append(value)
        elif single is not None:
            result += (single if single == quote else ESCAPES[single]).encode()
        else:
            point = int(short or long, 16)
            if point > 0x10FFFF:
                raise ValueError("quote syntax error")
            surrogate = 0xD800 <= point <= 0xDFFF
            result += ("\ufffd" if surrogate else chr(point)).encode()
    return result.decode("utf-8", "surrogateescape")


POSIX_CLASSES = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "ascii": r"\x00-\x7F",
    "blank": r"\t ",
    "cntrl": r"\x00-\x1F\x7F",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": r"!-/:-@\[-`{-~",
    "space": r"\t\n\v\f\r ",
    "upper": "A-Z",
    "word": "0-9A-Za-z_",
    "xdigit": "0-9A-Fa-f",
}
_BEYOND_RE2 = re.compile(r"(?<!\\)(?:\\\\)*(?:\\[1-9]|\(\?(?:[=!>(]|<[=!]|P=))")
_MULTILINE = re.compile(r"\(\?[a-zA-Z]*m")
_PATTERN_PART = re.compile(r"\\.|\[:(\w+):\]|[\[\]$]", re.DOTALL)


def compile_pattern(pattern: str) -> re.Pattern[str] | None:
    """A regular expression of the language (RE2's), or None when it is not one.

    One that does not compile matches nothing, as in containerd; it is not refused.
    """
    if _BEYOND_RE2.search(pattern):
        return None
    within = False
    multiline = _MULTILINE.search(pattern) is not None

    def translate(part: re.Match[str]) -> str:
        nonlocal within
        text = part.group()
        if text == r"\z":
            return r"\Z"
        if part.group(1) is not None:
            return POSIX_CLASSES.get(part.group(1), text) if within else text
        if text == "[":
            if within:
                return r"\["
            within = True
        elif text == "]":
            within = False
        elif text == "$" and not within and not multiline:
            # In RE2 the end is the end, also when the last character is a newline.
            return r"\Z"
        return text

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return re.compile(_PATTERN_PART.sub(translate, pattern), re.ASCII)
    except (re.error, OverflowError, RecursionError):
        return None
