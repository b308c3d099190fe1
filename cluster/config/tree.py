"""YAML text as a tree that knows its lines, and that cannot hurt: what `yaml.safe_load` does not give.

Built from PyYAML's parser events, so that nothing is constructed before it is judged: a tag, a second
document, a duplicate key or a text that grows far beyond its file (aliases) is a problem with a line.
Scalars follow the core schema of YAML 1.2 rather than YAML 1.1: `1e6` is a number, and `on`, `0777` and
`12:30` are no traps. Merge keys (`<<`) work.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml
from yaml import events

#: A configuration of 1024 hosts written out in full stays below each of these.
TEXT_BYTES_MAX = 1 << 20
NODES_MAX = 200_000
DEPTH_MAX = 32

Scalar: TypeAlias = "str | int | float | bool | None"

_YAML_TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?[0-9](_?[0-9]){0,39}")
_HEX = re.compile(r"0x[0-9a-fA-F]{1,32}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]{1,40}|[0-9]{1,40}(\.[0-9]{0,40})?)([eE][-+]?[0-9]{1,3})?")
_NULL = ("", "~", "null", "Null", "NULL")
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: where it stands, the field's path, and what is wrong."""

    line: int
    text: str
    path: str = ""
    #: The command-line option that brought the value in, or empty when the file did.
    origin: str = ""


class Unreadable(Exception):
    """The text is no YAML that a configuration may be made of."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.problem = Problem(line, text)


@dataclass(slots=True, eq=False)
class Tree:
    """A value and where it stands. `origin` names the command-line option that set it, if one did."""

    line: int
    value: Scalar | dict[str, Tree] | list[Tree]
    #: Line of the key, for a value of a mapping.
    key_line: int = 0
    origin: str = ""
    #: Nodes of this subtree, aliases counted as often as they are used.
    weight: int = 1
    #: Levels of this subtree, aliases followed.
    height: int = 1

    def plain(self) -> Any:
        """The value without lines; lists as tuples, which is what the frozen models hold."""
        if isinstance(self.value, dict):
            return {key: item.plain() for key, item in self.value.items()}
        if isinstance(self.value, list):
            return tuple(item.plain() for item in self.value)
        return self.value

    def child(self, key: str | int) -> Tree | None:
        """The value under a key or an index."""
        if isinstance(self.value, dict) and isinstance(key, str):
            return self.value.get(key)
        if isinstance(self.value, list) and isinstance(key, int) and 0 <= key < len(self.value):
            return self.value[key]
        return None


def scalar(text: str) -> Scalar:
    """What an unquoted scalar means."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.fullmatch(text):
        return int(text.replace("_", ""))
    if _HEX.fullmatch(text):
        return int(text, 16)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def found(value: object) -> str:
    """A value as a message quotes it: short, on one line."""
    if isinstance(value, Tree):
        value = value.value
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}" if value else "an empty list"
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = repr(value) if isinstance(value, str) else f"{value}"
    return text if len(text) <= 48 else f"{text[:45]}..."


def read_yaml(text: str) -> tuple[Tree | None, list[Problem]]:
    """The tree of one YAML document (None when there is none), and duplicate keys. Raises Unreadable."""
    if len(text.encode("utf-8", "surrogatepass")) > TEXT_BYTES_MAX:
        raise Unreadable(1, f"found more than {TEXT_BYTES_MAX >> 20} MiB of text; allowed: a smaller file")
    builder = _Builder()
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            builder.take(event, event.start_mark.line + 1 if event.start_mark else 1)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise Unreadable(line, f"found text that is not YAML: {error.problem or error.context}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise Unreadable(line, "found a character that YAML does not allow") from None
    return builder.root, builder.problems


@dataclass(slots=True)
class _Builder:
    """Takes parser events, keeps the open collections on a stack."""

    root: Tree | None = None
    problems: list[Problem] = field(default_factory=list)
    _documents: int = 0
    _open: list[_Open] = field(default_factory=list)
    _anchors: dict[str, Tree | None] = field(default_factory=dict)

    def take(self, event: events.Event, line: int) -> None:
        """One event after the other, in the order of the text."""
        if isinstance(event, events.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                raise Unreadable(line, "found a second document; allowed: one")
        elif isinstance(event, events.AliasEvent):
            self._put(self._alias(event.anchor, line), line)
        elif isinstance(event, events.ScalarEvent):
            self._refuse_tag(event.tag, line)
            if any("\ud800" <= letter <= "\udfff" for letter in event.value):
                raise Unreadable(line, "found an escape of half a character; allowed: whole characters")
            plain = scalar(event.value) if event.implicit[0] else event.value
            tree = Tree(line, plain)
            self._anchor(event.anchor, tree)
            self._put(tree, line)
        elif isinstance(event, events.CollectionStartEvent):
            self._refuse_tag(event.tag, line)
            if len(self._open) >= DEPTH_MAX:
                raise _too_deep(line)
            mapping = isinstance(event, events.MappingStartEvent)
            self._open.append(_Open(Tree(line, {} if mapping else []), event.anchor))
            if event.anchor:
                self._anchors[event.anchor] = None  # an alias inside it would contain itself
        elif isinstance(event, events.CollectionEndEvent):
            closed = self._open.pop()
            _merge(closed)
            self._anchor(closed.anchor, closed.tree)
            self._put(closed.tree, closed.tree.line)

    def _refuse_tag(self, tag: str | None, line: int) -> None:
        if tag is not None and tag != "!":
            raise Unreadable(line, f"found the tag {tag.replace(_YAML_TAG, '!!')[:80]}; allowed: no tags")

    def _anchor(self, anchor: str | None, tree: Tree) -> None:
        if anchor:
            self._anchors[anchor] = tree

    def _alias(self, anchor: str | None, line: int) -> Tree:
        target = self._anchors.get(anchor or "", False)
        if target is False:
            raise Unreadable(
                line, f"found the alias *{anchor} without its anchor; allowed: one defined above it"
            )
        if not isinstance(target, Tree):
            raise Unreadable(
                line, f"found the alias *{anchor} inside its own anchor; allowed: one defined above it"
            )
        return target

    def _put(self, tree: Tree, line: int) -> None:
        if not self._open:
            self.root = tree
            return
        top = self._open[-1]
        top.tree.weight += tree.weight
        top.tree.height = max(top.tree.height, tree.height + 1)
        if top.tree.height > DEPTH_MAX:
            raise _too_deep(line)
        if top.tree.weight > NODES_MAX:
            raise Unreadable(line, f"found more than {NODES_MAX} values, aliases included; allowed: fewer")
        if isinstance(top.tree.value, list):
            top.tree.value.append(tree)
        elif isinstance(top.tree.value, dict):
            self._put_pair(top, top.tree.value, tree, line)

    def _put_pair(self, top: _Open, mapping: dict[str, Tree], tree: Tree, line: int) -> None:
        if top.key is None:
            if isinstance(tree.value, dict | list):
                raise Unreadable(line, f"found {found(tree)} as a key; allowed: a name")
            top.key = (tree.value if isinstance(tree.value, str) else found(tree), line)
            return
        (key, key_line), top.key = top.key, None
        if key == "<<":
            top.merges.append(tree)
        elif key in mapping:
            first = mapping[key].key_line
            self.problems.append(
                Problem(key_line, f"found the key {key!r} again, after line {first}; allowed: once")
            )
        else:
            # An alias stands in several places: each gets its own entry, the content is shared.
            mapping[key] = Tree(tree.line, tree.value, key_line, weight=tree.weight, height=tree.height)


@dataclass(slots=True)
class _Open:
    """A collection that is not closed yet."""

    tree: Tree
    anchor: str | None
    key: tuple[str, int] | None = None
    merges: list[Tree] = field(default_factory=list)


def _too_deep(line: int) -> Unreadable:
    return Unreadable(line, f"found more than {DEPTH_MAX} levels of nesting; allowed: fewer")


def _merge(closed: _Open) -> None:
    """Apply merge keys: what they bring stands behind what the mapping says itself, the first one first."""
    mapping = closed.tree.value
    for source in closed.merges:
        for item in _mappings(source):
            for key, tree in item.items():
                if isinstance(mapping, dict) and key not in mapping:
                    mapping[key] = tree


def _mappings(source: Tree) -> Iterator[dict[str, Tree]]:
    for item in source.value if isinstance(source.value, list) else [source]:
        if not isinstance(item.value, dict):
            raise Unreadable(
                item.line, f"found {found(item)} under <<; allowed: a mapping, or a list of mappings"
            )
        yield item.value
