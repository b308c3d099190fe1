"""Whether what an `expect` wants can be at all: a subject that is a number is not compared with words.

What a subject gives is said by the annotation of its function; text and lists are left as they are, since nearly
every word may be one of theirs.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from privmem.cluster.config.tree import Tree, found
from privmem.cluster.litmus.expectations import ANY, is_by_design
from privmem.cluster.litmus.grammar import Misread
from privmem.cluster.litmus.subjects import Subject

Fits = Callable[[Tree], bool]

_NUMBER = re.compile(r"-?\d+|(>=|<=|>|<|!=)\s*-?\d+")
_A_NUMBER = 'a number, or a comparison in quotes such as "> 0"'
_COUNTS = "a mapping of nodes to numbers, such as {D0: 64}, or none"


def check_kind(subject: Subject, value: Tree) -> None:
    """Raise Misread for a value that what the subject gives can never be."""
    gives = str(subject.look.__annotations__.get("return", ""))
    if gives.startswith("dict"):
        _check(value, _is_count, _COUNTS)
    elif gives == "int":
        _check(value, _is_number, _A_NUMBER)


def _check(value: Tree, fits: Fits, allowed: str) -> None:
    if is_by_design(value):
        assert isinstance(value.value, dict)
        for below in value.value.values():
            _check(below, fits, allowed)
    elif isinstance(value.value, dict) and set(value.value) == {ANY}:
        several = value.value[ANY]
        for below in several.value if isinstance(several.value, list) else [several]:
            _check(below, fits, allowed)
    elif not fits(value):
        raise Misread(f"found {found(value)}; allowed: {allowed}")


def _is_number(value: Tree) -> bool:
    if isinstance(value.value, bool | dict | list) or value.value is None:
        return False
    return _NUMBER.fullmatch(str(value.value).strip()) is not None


def _is_count(value: Tree) -> bool:
    if isinstance(value.value, dict):
        return all(
            _is_number(below) or (isinstance(below.value, dict) and set(below.value) == {ANY})
            for below in value.value.values()
        )
    return value.value in (0, None, "none", "-", "0")
