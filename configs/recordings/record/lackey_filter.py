"""Turns the text of `valgrind --tool=lackey --trace-mem=yes` into page accesses, as a tiny TLB would miss them.

Lackey prints a line for each event: `I  04001000,3` an instruction, ` L 1ffeff,8` a load, ` S ...` a store,
` M ...` a load and store; address in hex, size in decimal. Instructions are left out here, and so is
everything that is no such line (valgrind's own `==PID==` lines).

The filter models a fully associative buffer of the `ways` last used pages, least recently used out first.
An access is kept when its page is not in the buffer; a store to a page in the buffer is kept when it is the
first store since the page came in (M counts as a store). Loads and further stores to pages in the buffer
are dropped, and nothing else is.
"""

from __future__ import annotations

import numpy as np
from numba import njit

PAGE_SHIFT = 12
_NEWLINE, _COMMA, _SPACE = 10, 44, 32
_L, _S, _M = 76, 83, 77


@njit(cache=True)
def _parse(text, pages, written, kept):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Filter the whole lines of `text`; returns (bytes used, accesses kept, accesses seen).

    `pages` int64[ways] (-1: empty) and `written` bool[ways] are the buffer, last used first; `kept` uint64 takes
    `page << 1 | is_write`.
    """
    at, nr_kept, nr_seen = np.int64(0), np.int64(0), np.int64(0)
    length, ways = np.int64(len(text)), np.int64(len(pages))
    while at < length and nr_kept + 64 < len(kept):
        end = at
        while end < length and text[end] != _NEWLINE:
            end += 1
        if end == length:
            break
        kind = text[at + 1] if end - at > 4 and text[at] == _SPACE and text[at + 2] == _SPACE else np.uint8(0)
        if kind in (_L, _S, _M):
            address, cursor = np.int64(0), at + 3
            while cursor < end and text[cursor] != _COMMA:
                digit = np.int64(text[cursor])
                address = address * 16 + (digit - 48 if digit < 58 else digit - 87)
                cursor += 1
            size, cursor = np.int64(0), cursor + 1
            while cursor < end:
                size = size * 10 + np.int64(text[cursor]) - 48
                cursor += 1
            store = kind != _L
            for page in range(address >> PAGE_SHIFT, ((address + max(size, 1) - 1) >> PAGE_SHIFT) + 1):
                nr_seen += 1
                way = np.int64(0)
                while way < ways and pages[way] != page:
                    way += 1
                hit = way < ways
                was_written = hit and written[way]
                if not hit:
                    way = ways - 1
                for older in range(way, 0, -1):
                    pages[older] = pages[older - 1]
                    written[older] = written[older - 1]
                pages[0] = page
                written[0] = was_written or store
                if not hit or (store and not was_written):
                    kept[nr_kept] = np.uint64(page << 1) | np.uint64(1 if store else 0)
                    nr_kept += 1
        at = end + 1
    return at, nr_kept, nr_seen


class LackeyFilter:
    """The filter over a stream that comes in pieces of any length."""

    def __init__(self, ways: int) -> None:
        self.ways = ways
        self.nr_seen = 0
        self._pages = np.full(ways, -1, np.int64)
        self._written = np.zeros(ways, np.bool_)
        self._rest = b""

    def feed(self, text: bytes) -> np.ndarray:
        """The accesses that a piece adds: uint64 `page << 1 | is_write`, pages of the process's address space."""
        whole = np.frombuffer(self._rest + text, np.uint8)
        kept: list[np.ndarray] = []
        at = 0
        while True:
            out = np.empty(1 << 16, np.uint64)
            used, nr_kept, nr_seen = _parse(whole[at:], self._pages, self._written, out)
            at += used
            self.nr_seen += nr_seen
            kept.append(out[:nr_kept])
            if used == 0 or nr_kept + 64 < len(out):
                break
        self._rest = whole[at:].tobytes()
        return np.concatenate(kept)
