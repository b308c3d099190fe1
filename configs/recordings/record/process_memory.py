"""Data pages of a stopped process, from /proc/PID/maps and /proc/PID/mem.

Taken are private, anonymous, readable and writable maps: heap and mmap'ed data. Left out are maps of files,
stacks (they hold environment, arguments and auxiliary vector), the .bss of programs and libraries, and
valgrind's own memory.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PAGE_BYTES = 4096
#: valgrind (amd64) keeps its own memory, and the program's first stack, above this address; its text lies lower.
_VALGRIND_FROM = 0x10_0000_0000
_VALGRIND_TEXT = range(0x5800_0000, 0x6000_0000)
#: Thread stacks are as long as RLIMIT_STACK, which `record.py` sets to this.
STACK_BYTES = 8 << 20

_LINE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) \S+ \d+ *(.*)")
_PT_LOAD, _PF_W = 1, 2


@dataclass(frozen=True, slots=True)
class _Map:
    start: int
    end: int
    mode: str
    offset: int
    path: str


def data_ranges(maps: str, bss_end: Callable[[str, int, int], int]) -> list[tuple[int, int]]:
    """Address ranges of the data pages, from the text of /proc/PID/maps.

    `bss_end(path, start, offset)` says where the .bss of a file ends that is mapped writable at `start`.
    """
    before = _Map(0, 0, "----", 0, "")
    ranges: list[tuple[int, int]] = []
    for line in maps.splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        this = _Map(int(match[1], 16), int(match[2], 16), match[3], int(match[4], 16), match[5])
        start = this.start
        # The kernel joins a stack, or a .bss, with data mapped right above it: only its own length is left out.
        if before.end == this.start and before.mode == "---p":
            start += STACK_BYTES
        elif before.end == this.start and before.path.startswith("/") and before.mode[1] == "w":
            start = max(start, bss_end(before.path, before.start, before.offset))
        private_data = this.mode[:2] == "rw" and this.mode[3] == "p" and this.path in ("", "[heap]")
        if private_data and start < this.end <= _VALGRIND_FROM and this.start not in _VALGRIND_TEXT:
            ranges.append((start, this.end))
        before = this
    return ranges


def elf_bss_end(path: str, start: int, offset: int) -> int:
    """First page behind the .bss of a file that is mapped at `start` from `offset`; from its program headers."""
    with Path(path).open("rb") as file:
        head = file.read(64)
        if head[:6] != b"\x7fELF\x02\x01":
            return start
        (table_at,), (entry_bytes, nr_entries) = (
            struct.unpack_from("<Q", head, 32),
            struct.unpack_from("<HH", head, 54),
        )
        file.seek(table_at)
        table = file.read(entry_bytes * nr_entries)
    bias, last = None, 0
    for entry in range(nr_entries):
        kind, flags, at, address, _, file_bytes, memory_bytes, _ = struct.unpack_from(
            "<IIQQQQQQ", table, entry * entry_bytes
        )
        if kind == _PT_LOAD and flags & _PF_W:
            first = at // PAGE_BYTES * PAGE_BYTES
            if bias is None and first <= offset < at + file_bytes:
                bias = start - (offset - first) - address // PAGE_BYTES * PAGE_BYTES
            last = max(last, address + memory_bytes)
    return start if bias is None else -(-(bias + last) // PAGE_BYTES) * PAGE_BYTES


def read_pages(pid: int) -> dict[int, bytes]:
    """Page number and content of each data page of a stopped process that is not all zero."""
    proc = Path("/proc") / str(pid)
    pages: dict[int, bytes] = {}
    with (proc / "mem").open("rb", buffering=0) as memory:
        for start, end in data_ranges((proc / "maps").read_text(), elf_bss_end):
            memory.seek(start)
            content = memory.read(end - start)
            rows = np.frombuffer(content, np.uint8).reshape(-1, PAGE_BYTES)
            for row in np.flatnonzero(rows.any(axis=1)):
                pages[start // PAGE_BYTES + int(row)] = rows[row].tobytes()
    return pages
