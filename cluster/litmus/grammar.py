"""A grammar of command lines small enough to be read in the documentation: the pattern is the parser.

A pattern such as `mbind RANGE MODE [NODES] [move|strict]...` is a row of elements: lower-case words stand for
themselves, UPPER-CASE ones for a value of that type (`TO:NODES` gives it another name), `[...]` may be missing,
`a|b` is one of them, and `[a|b]...` any number of them. Neighbours that may be missing come in any order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Protocol


class Misread(Exception):
    """A command line that no pattern fits; the text says what was found and what is allowed."""


class ValueType(Protocol):
    """A type of values: what it is called in messages, and how a value is read from words."""

    @property
    def what(self) -> str:
        """What such a value is, for messages."""

    def read(self, words: Sequence[str], names: Any) -> tuple[Any, int]:
        """The value and how many words it took. Raises Misread."""


@dataclass(frozen=True, slots=True)
class Element:
    """One element of a pattern."""

    #: Words that stand for themselves, one of which must be there; empty for a value.
    literals: tuple[str, ...] = ()
    #: Type of the value, and the name that it gets.
    type: str = ""
    name: str = ""
    #: Elements that may be missing together; empty for a plain element.
    optional: tuple[Element, ...] = ()
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Pattern:
    """A parsed pattern and its text."""

    text: str
    elements: tuple[Element, ...]

    @property
    def verb(self) -> str:
        """The words that it begins with."""
        words = []
        for element in self.elements:
            if len(element.literals) != 1:
                break
            words.append(element.literals[0])
        return " ".join(words)

    @property
    def lead(self) -> tuple[tuple[str, ...], ...]:
        """The words that it begins with, each with its alternatives."""
        words = []
        for element in self.elements:
            if not element.literals or element.repeated:
                break
            words.append(element.literals)
        return tuple(words)


_SKIPPED = "?"
_TOKEN = re.compile(r"\[|\]\.\.\.|\]|[^\s\[\]]+")


def pattern(text: str) -> Pattern:
    """Read a pattern."""
    tokens = _TOKEN.findall(text)
    elements, rest = _elements(tokens)
    if rest:
        raise ValueError(f"pattern {text!r} has a bracket too many")
    return Pattern(text, elements)


def _elements(tokens: list[str]) -> tuple[tuple[Element, ...], list[str]]:
    found: list[Element] = []
    while tokens:
        token, *tokens = tokens
        if token == "[":
            inner, tokens = _elements(tokens)
            closing, *tokens = tokens
            if closing == "]...":
                found.append(Element(inner[0].literals, repeated=True))
            else:
                found.append(Element(optional=inner))
        elif token.startswith("]"):
            return tuple(found), [token, *tokens]
        elif token.isupper() or ":" in token:
            name, _, kind = token.rpartition(":")
            found.append(Element(type=kind, name=(name or kind).lower()))
        else:
            found.append(Element(literals=tuple(token.split("|"))))
    return tuple(found), tokens


def match(
    chosen: Pattern, words: Sequence[str], types: Mapping[str, ValueType], names: Any
) -> dict[str, Any]:
    """The values of a command line by name; literals that were there are True under their own name."""
    values: dict[str, Any] = {}
    left = _match(chosen.elements, list(words), types, names, values)
    skipped = values.pop(_SKIPPED, None)
    if left and skipped:
        raise skipped
    if left:
        hint = nearest(left[0], list(_literals(chosen.elements)))
        raise Misread(f"found {' '.join(left)!r} at the end; allowed: {chosen.text}{hint}")
    return values


def _literals(elements: Sequence[Element]) -> Iterator[str]:
    """Every word that a pattern knows."""
    for element in elements:
        yield from element.literals
        yield from _literals(element.optional)


def _match(
    elements: tuple[Element, ...],
    words: list[str],
    types: Mapping[str, ValueType],
    names: Any,
    values: dict[str, Any],
) -> list[str]:
    left = list(elements)
    while left:
        element = left.pop(0)
        if element.repeated or element.optional:
            free = [element]
            while left and (left[0].repeated or left[0].optional):
                free.append(left.pop(0))
            # Each of the required ones that follow needs a word.
            kept = len(words) - sum(not (e.repeated or e.optional) for e in left)
            words = _match_free(free, words[: max(kept, 0)], types, names, values) + words[max(kept, 0) :]
        elif element.literals:
            if not words or words[0] not in element.literals:
                found = repr(words[0]) if words else "nothing"
                raise Misread(f"found {found}; allowed: {' or '.join(element.literals)}")
            values[words[0]] = True
            words = words[1:]
        else:
            if not words:
                raise Misread(f"found nothing; allowed: {types[element.type].what}")
            values[element.name], taken = types[element.type].read(words, names)
            words = words[taken:]
    return words


def _match_free(
    free: list[Element],
    words: list[str],
    types: Mapping[str, ValueType],
    names: Any,
    values: dict[str, Any],
) -> list[str]:
    """Neighbours that may be missing are taken in any order, each once."""
    at = 0
    while words and at < len(free):
        element, before = free[at], words
        if element.repeated:
            while words and words[0] in element.literals:
                values[words[0]] = True
                words = words[1:]
        else:
            words = _match_optional(element.optional, words, types, names, values)
        if len(words) < len(before):
            if not element.repeated:
                del free[at]
            at = 0
        else:
            at += 1
    return words


def _match_optional(
    inner: tuple[Element, ...],
    words: list[str],
    types: Mapping[str, ValueType],
    names: Any,
    values: dict[str, Any],
) -> list[str]:
    """Take the optional elements if they are there. A group that begins with a literal is there when the literal
    is; then it must be whole.
    """
    if not words:
        return words
    if inner[0].literals:
        return _match(inner, words, types, names, values) if words[0] in inner[0].literals else words
    tried: dict[str, Any] = {}
    try:
        rest = _match(inner, words, types, names, tried)
    except Misread as error:
        values[_SKIPPED] = error  # tells why, if nothing else takes the word
        return words
    values.pop(_SKIPPED, None)
    values.update(tried)
    return rest


def nearest(word: str, known: Sequence[str]) -> str:
    """`; did you mean 'x'?`, or nothing."""
    near = get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
