"""Data pages of a stopped process, from /proc/PID/maps and /proc/PID/mem.

Taken are private, anonymous, readable and writable maps: heap and mmap'ed data. Left out are maps of files,
stacks (they hold environment, arguments and auxiliary vector), the .bss of programs and libraries, and
valgrind's own memory.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PAGE_BYTES = 4096
#: valgrind (amd64) keeps its own memory, and the program's first stack, above this address; its text lies lower.
_VALGRIND_FROM = 0x10_0000_0000
_VALGRIND_TEXT = range(0x5800_0000, 0x6000_0000)
#: Thread stacks are as long as RLIMIT_STACK, which `record.py` sets to this.
STACK_BYTES = 8 << 20

_LINE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \d+ *(.*)")


@dataclass(frozen=True, slots=True)
class _Map:
    start: int
    end: int
    mode: str
    path: str


def data_ranges(maps: str) -> list[tuple[int, int]]:
    """Address ranges of the data pages, from the text of /proc/PID/maps."""
    before = _Map(0, 0, "----", "")
    ranges: list[tuple[int, int]] = []
    for line in maps.splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        this = _Map(int(match[1], 16), int(match[2], 16), match[3], match[4])
        touches = before.end == this.start
        # The kernel joins a stack with data mapped right above it, so only the stack's own length is left out.
        start = this.start + STACK_BYTES if touches and before.mode == "---p" else this.start
        # valgrind maps the heap (brk) with x, right behind the dynamic linker, where a .bss would stand.
        is_bss = touches and before.path.startswith("/") and before.mode[1] == "w" and "x" not in this.mode
        private_data = this.mode[:2] == "rw" and this.mode[3] == "p" and this.path in ("", "[heap]")
        if private_data and not is_bss and this.start < _VALGRIND_FROM and this.start not in _VALGRIND_TEXT:
            ranges.append((start, this.end))
        before = this
    return [(start, end) for start, end in ranges if start < end]


def read_pages(pid: int) -> dict[int, bytes]:
    """Page number and content of each data page of a stopped process that is not all zero."""
    proc = Path("/proc") / str(pid)
    pages: dict[int, bytes] = {}
    with (proc / "mem").open("rb", buffering=0) as memory:
        for start, end in data_ranges((proc / "maps").read_text()):
            memory.seek(start)
            content = memory.read(end - start)
            rows = np.frombuffer(content, np.uint8).reshape(-1, PAGE_BYTES)
            for row in np.flatnonzero(rows.any(axis=1)):
                pages[start // PAGE_BYTES + int(row)] = rows[row].tobytes()
    return pages
