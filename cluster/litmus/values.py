"""The types of values in the command lines of litmus tests."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from privmem.cluster.config.units import UnitError, parse_size, parse_time
from privmem.cluster.litmus.grammar import Misread, ValueType, nearest
from privmem.scheduler.abi import PAGE_SIZE, Feature, Mpol

HUGE_PAGES = 512

MODES: dict[str, Mpol] = {mode.name.lower(): mode for mode in Mpol}

#: Advices of madvise(2), `include/uapi/asm-generic/mman-common.h`.
ADVICES: dict[str, int] = {
    "normal": 0,
    "random": 1,
    "sequential": 2,
    "willneed": 3,
    "dontneed": 4,
    "free": 8,
    "mergeable": 12,
    "unmergeable": 13,
    "hugepage": 14,
    "nohugepage": 15,
    "cold": 20,
    "pageout": 21,
    "populate_read": 22,
    "populate_write": 23,
    "dontneed_locked": 24,
    "collapse": 25,
}

#: Advices of posix_fadvise(2).
FADVICES = {"normal": 0, "random": 1, "sequential": 2, "willneed": 3, "dontneed": 4, "noreuse": 5}

FEATURES: dict[str, Feature] = {
    f.name.lower(): f for f in Feature if f.name and f not in (Feature.NONE, Feature.PUBLIC, Feature.ALL)
}
#: Other names of features, in other versions of the series; upper case is as good.
_ALSO = {
    "mempolicy": "user_numa",
    "user": "user_numa",
    "compact": "compaction",
    "contig": "contig_alloc",
    "ltpin": "longterm_pin",
}
#: The marker of an ordinary node, which only a claim can name.
_GENERAL = ("public", "common", "fallback")

#: Flags of the first version (`NP_OPS_*`); PROTECT_WRITE is the absence of writing in place.
OPS_FLAGS: dict[str, Feature] = {
    "migration": Feature.MIGRATION,
    "mempolicy": Feature.USER_NUMA,
    "demotion": Feature.DEMOTION,
    "protect_write": Feature.USER_WRITE,
    "reclaim": Feature.RECLAIM,
    "numa_balancing": Feature.NUMA_BALANCING,
    "compaction": Feature.COMPACTION,
    "longterm_pin": Feature.LONGTERM_PIN,
}

#: Callbacks of the first version (`struct node_private_ops`).
CALLBACKS = (
    "free_folio",
    "folio_split",
    "folio_migrate",
    "handle_fault",
    "migrate_to",
    "memory_failure",
    "reclaim_policy",
)


def feature_named(name: str) -> Feature | None:
    """The feature of this name in any version, or None."""
    return FEATURES.get(_ALSO.get(name.lower(), name.lower()))


@dataclass(slots=True)
class Names:
    """What a script's words may refer to."""

    #: Node name -> id.
    nodes: Mapping[str, int]
    files: set[str] = field(default_factory=set)
    processes: set[str] = field(default_factory=set)
    cgroups: set[str] = field(default_factory=set)
    #: Names of mappings, of any process.
    ranges: set[str] = field(default_factory=set)
    devices: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class RangeRef:
    """Part of a mapping: `mem`, `mem[3]`, `mem[0:8]`, `A.mem`; or pages of a file."""

    name: str
    owner: str = ""
    first: int = 0
    last: int | None = None  # one past the last page; None for all
    is_file: bool = False

    def __str__(self) -> str:
        text = f"{self.owner}.{self.name}" if self.owner else self.name
        if self.last is None:
            return text
        return f"{text}[{self.first}]" if self.last == self.first + 1 else f"{text}[{self.first}:{self.last}]"


@dataclass(frozen=True, slots=True)
class Typed:
    """A type made of a function."""

    what: str
    function: Callable[[Sequence[str], Names], tuple[Any, int]]

    def read(self, words: Sequence[str], names: Names) -> tuple[Any, int]:
        return self.function(words, names)


def _one_of(what: str, table: Callable[[Names], Mapping[str, Any]], prefix: str = "") -> Typed:
    """A word of a table; with a prefix also as the headers have it, MPOL_BIND or BIND."""

    def read(words: Sequence[str], names: Names) -> tuple[Any, int]:
        known = table(names)
        plain = words[0].lower().removeprefix(prefix) if prefix else words[0]
        if plain in known:
            return known[plain], 1
        if words[0] not in known:
            allowed = ", ".join(sorted(known)) or "none is there"
            raise Misread(f"found {words[0]!r}; allowed: {what} ({allowed}){nearest(words[0], list(known))}")
        return known[words[0]], 1

    return Typed(what, read)


def _same(names: set[str]) -> dict[str, str]:
    return {name: name for name in sorted(names)}


_RANGE = re.compile(r"(?:(\w+)\.)?(\w+)(?:\[(\d+)(?::(\d+))?\])?")


def _range(words: Sequence[str], names: Names) -> tuple[RangeRef, int]:
    match = _RANGE.fullmatch(words[0])
    known = names.ranges | names.files
    if not match or match[2] not in known or (match[1] and match[1] not in names.processes):
        allowed = ", ".join(sorted(known)) or "no mapping is made"
        raise Misread(
            f"found {words[0]!r}; allowed: a mapping or file, such as mem, mem[0:8], A.mem ({allowed})"
            f"{nearest(words[0].split('[')[0], sorted(known))}"
        )
    first = int(match[3] or 0)
    last = int(match[4]) if match[4] else (first + 1 if match[3] else None)
    is_file = match[2] in names.files and match[2] not in names.ranges
    return RangeRef(match[2], match[1] or "", first, last, is_file), 1


def _nodes(words: Sequence[str], names: Names) -> tuple[list[int], int]:
    if words[0] in ("-", "none"):
        return [], 1
    found: list[int] = []
    for name in words[0].strip("{}").split(","):
        span = re.fullmatch(r"([0-9]{1,2})-([0-9]{1,2})", name)
        if span and int(span[1]) <= int(span[2]) < 64:  # as the kernel prints masks: 0-1,3
            found += range(int(span[1]), int(span[2]) + 1)
        elif name in names.nodes:
            found.append(names.nodes[name])
        elif name.isascii() and name.isdecimal() and int(name) < 64:
            found.append(int(name))
        else:
            known = ", ".join(names.nodes)
            raise Misread(
                f"found {name!r}; allowed: nodes with commas between them, - for none ({known})"
                f"{nearest(name, list(names.nodes))}"
            )
    return found, 1


def _node(words: Sequence[str], names: Names) -> tuple[int, int]:
    nodes, taken = _nodes(words, names)
    if len(nodes) != 1:
        raise Misread(f"found {words[0]!r}; allowed: one node")
    return nodes[0], taken


def _size(words: Sequence[str], _names: Names) -> tuple[int, int]:
    """Bytes: `64 pages`, `2 huge pages`, `4MiB`."""
    if words[0].isascii() and words[0].isdecimal():
        units = {("page",): 1, ("pages",): 1, ("huge", "page"): HUGE_PAGES, ("huge", "pages"): HUGE_PAGES}
        for unit, pages in units.items():
            if tuple(words[1 : 1 + len(unit)]) == unit:
                return int(words[0]) * pages * PAGE_SIZE, 1 + len(unit)
    else:
        try:
            return parse_size(words[0]), 1
        except UnitError:
            pass
    raise Misread(f"found {words[0]!r}; allowed: a size such as 64 pages, 2 huge pages or 4MiB")


def _number(words: Sequence[str], _names: Names) -> tuple[int, int]:
    text = words[0]
    digits = text.removeprefix("-")
    if digits.isascii() and digits.isdecimal() and len(digits) < 20:
        return int(text), 1
    if re.fullmatch(r"0x[0-9a-fA-F]{1,16}", text):
        return int(text, 16), 1
    raise Misread(f"found {text!r}; allowed: a whole number")


def _duration(words: Sequence[str], _names: Names) -> tuple[int, int]:
    try:
        return parse_time(words[0]), 1
    except UnitError:
        raise Misread(f"found {words[0]!r}; allowed: a time such as 10ms or 2s") from None


def _features(words: Sequence[str], _names: Names) -> tuple[Feature, int]:
    mask = Feature.NONE
    if re.fullmatch(r"0x[0-9a-fA-F]{1,8}", words[0]):
        return Feature(int(words[0], 16)), 1
    for name in [] if words[0] in ("-", "none") else words[0].split(","):
        feature = Feature.PUBLIC if name.lower() in _GENERAL else feature_named(name)
        if feature is None:
            known = ", ".join(FEATURES)
            raise Misread(
                f"found {name!r}; allowed: features with commas between them ({known})"
                f"{nearest(name, list(FEATURES))}"
            )
        mask |= feature
    return mask, 1


def _ops_flags(words: Sequence[str], _names: Names) -> tuple[Feature, int]:
    """Flags of the first version, as features: what is not write-protected may be written in place."""
    mask = Feature.USER_WRITE
    for name in [] if words[0] in ("-", "none") else words[0].lower().split(","):
        if name == "protect_write":
            mask &= ~Feature.USER_WRITE
        elif name in OPS_FLAGS:
            mask |= OPS_FLAGS[name]
        else:
            known = ", ".join(OPS_FLAGS)
            raise Misread(f"found {name!r}; allowed: flags ({known}){nearest(name, list(OPS_FLAGS))}")
    return mask, 1


def _callbacks(words: Sequence[str], _names: Names) -> tuple[list[str], int]:
    """Callbacks of the first version, with commas or blanks between them."""
    found = [name for word in words for name in word.split(",") if name not in ("", "none", "-")]
    for name in found:
        if name not in CALLBACKS:
            known = ", ".join(CALLBACKS)
            raise Misread(f"found {name!r}; allowed: callbacks ({known}){nearest(name, list(CALLBACKS))}")
    return found, len(words)


def _node_id(words: Sequence[str], names: Names) -> tuple[int, int]:
    """A node by name, or any number, also of a node that does not exist."""
    return (names.nodes[words[0]], 1) if words[0] in names.nodes else _number(words, names)


def _word(words: Sequence[str], _names: Names) -> tuple[str, int]:
    return words[0], 1


def _text(words: Sequence[str], _names: Names) -> tuple[str, int]:
    return " ".join(words), len(words)


TYPES: dict[str, ValueType] = {
    "RANGE": Typed("a mapping, or pages of one: mem, mem[3], mem[0:8], A.mem; or of a file", _range),
    "NODE": Typed("a node", _node),
    "NODES": Typed("nodes with commas between them, - for none", _nodes),
    "NODEID": Typed("a node, or the number of one that need not exist", _node_id),
    "FLAGS": Typed("flags of the first version with commas between them, none for none", _ops_flags),
    "CALLS": Typed("callbacks of the first version with commas between them, none for none", _callbacks),
    "SIZE": Typed("a size such as 64 pages, 2 huge pages or 4MiB", _size),
    "NUMBER": Typed("a whole number", _number),
    "TIME": Typed("a time such as 10ms", _duration),
    "MODE": _one_of("a policy mode", lambda _: MODES, "mpol_"),
    "ADVICE": _one_of("an advice", lambda _: ADVICES, "madv_"),
    "FILE": _one_of("a file", lambda n: _same(n.files)),
    "PROCESS": _one_of("a process", lambda n: _same(n.processes)),
    "CGROUP": _one_of("a cgroup", lambda n: _same(n.cgroups)),
    "DEVICE": _one_of("a device", lambda n: _same(n.devices)),
    "FEATURES": Typed("features with commas between them, none for none", _features),
    "WORD": Typed("a word", _word),
    "TEXT": Typed("text", _text),
}
