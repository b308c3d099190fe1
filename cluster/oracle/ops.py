"""The ops of recorded programs: their names, their arguments, the ranges of these.

One line of text an op, words parted by blanks. The table is the reference for docs/oracle.md, for the machine
that replays them (one method an op), and for `tools/oracle`, which makes more recordings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from privmem.scheduler import nodemask

#: Regions lie this far apart, and the recorder makes so many of them at most.
REGION_PAGES = 0x4000_0000 >> 12
NR_REGIONS = 64
#: Sizes of the files f0 to f3 of the recorded machine.
FILE_PAGES = (64, 32, 128, 2048)
NR_NODES = 4
NR_CPUS = 2

Value = Any  # int, str or tuple[int, ...], as the table says
Parse = Callable[[str], Value]


@dataclass(frozen=True, slots=True)
class Op:
    """One parsed line."""

    text: str
    name: str
    args: tuple[Value, ...]


def _integer(text: str) -> int:
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 18:
        raise ValueError(f"found {text!r}; allowed: an integer")
    return int(text)


def _within(limit: int) -> Parse:
    def parse(text: str) -> int:
        value = _integer(text)
        if not 0 <= value < limit:
            raise ValueError(f"found {text}; allowed: 0 to {limit - 1}")
        return value

    return parse


def _int_list(text: str) -> tuple[int, ...]:
    return tuple(_integer(word) for word in text.split(","))


def _word(text: str) -> str:
    return text


def _one_of(*words: str) -> Parse:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"found {text!r}; allowed: {', '.join(words)}")
        return text

    return parse


_REGION = ("region", _within(NR_REGIONS))
_OFFSET = ("offset", _within(REGION_PAGES))
_PAGES = ("pages", _within(REGION_PAGES + 1))
_RANGE = (_REGION, _OFFSET, _PAGES)
_FILE = ("file", _within(len(FILE_PAGES)))
_NODES = ("nodes", nodemask.parse)
_NODE = ("node", _within(NR_NODES))
_HOW = ("how", _one_of("r", "w"))
_FLAGS = ("flags", _integer)
_MODE = ("mode", _integer)

#: Op: its arguments in order, each with its name and what reads it.
OPS: dict[str, tuple[tuple[str, Parse], ...]] = {
    "cpu": (("cpu", _within(NR_CPUS)),),
    "mmap": (_REGION, _PAGES, ("kind", _one_of("pa", "sa"))),
    "munmap": _RANGE,
    "setpol": (_MODE, _NODES),
    "mbind": (*_RANGE, _MODE, _NODES, _FLAGS),
    "touch": (*_RANGE, _HOW),
    "where": _RANGE,
    "move": (*_RANGE, ("node", _integer), _FLAGS),
    "migrate": (("from", nodemask.parse), ("to", nodemask.parse)),
    "getpol": (),
    "getpolat": (_REGION, _OFFSET),
    "allowed": (),
    "madvise": (*_RANGE, ("advice", _integer)),
    "forkwrite": _RANGE,
    "fmap": (_REGION, _FILE, _PAGES, ("kind", _one_of("fs", "fp"))),
    "fread": (_FILE, _OFFSET, _PAGES),
    "faults": (*_RANGE, _HOW),
    "drop": (),
    "cpuset": (_NODES,),
    # what the first recordings do not touch
    "try": (*_RANGE, _HOW),
    "ptes": _RANGE,
    "order": _RANGE,
    "moves": (*_RANGE, ("nodes", _int_list), _FLAGS),
    "query": (_FLAGS,),
    "queryat": (_FLAGS, _REGION, _OFFSET),
    "homenode": (*_RANGE, ("node", _integer), _FLAGS),
    "hold": (),
    "release": (),
    "protect": (*_RANGE, ("rights", _one_of("-", "r", "w", "rw"))),
    "mremap": (*_RANGE, ("to", _within(NR_REGIONS)), ("offset", _within(REGION_PAGES)), _PAGES),
    "mlock": (*_RANGE, _FLAGS),
    "munlock": _RANGE,
    "freadv": (_FILE, _OFFSET, _PAGES),
    "fwrite": (_FILE, _OFFSET, _PAGES),
    "fadvise": (_FILE, _OFFSET, _PAGES, ("advice", _integer)),
    "incore": (_FILE, _OFFSET, _PAGES),
    "cached": (_FILE, _OFFSET, _PAGES),
    "sync": (),
    "fill": (_NODE, ("left", _within(REGION_PAGES))),
    "unfill": (),
    "free": (_NODE,),
    "delta": (("counter", _word),),
    "demotion": (("switch", _one_of("on", "off")),),
    "reclaim": (_PAGES,),
    "weight": (_NODE, ("weight", _integer)),
}


def parse_op(text: str) -> Op:
    """Read one op line. Raises ValueError that says what is wrong with it."""
    name, *words = text.split() or [""]
    if name not in OPS:
        raise ValueError(f"{text!r}: no such op; allowed: {', '.join(OPS)}")
    takes = OPS[name]
    if len(words) != len(takes):
        wanted = " ".join([name, *(argument for argument, _ in takes)])
        raise ValueError(f"{text!r}: {len(words)} arguments, expected {len(takes)}: {wanted}")
    values: list[Value] = []
    for (argument, parse), word in zip(takes, words, strict=True):
        try:
            values.append(parse(word))
        except ValueError as error:
            raise ValueError(f"{text!r}: {argument}: {error}") from None
    return Op(text, name, tuple(values))
