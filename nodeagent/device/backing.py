"""The content store of a device: what is in each of its pages, and the physical memory behind it.

A described page is kept as its description and, on a compressed device, as the granules that its real bytes
take. A literal page is kept byte for byte: compressed into its granules, or as it is. With `keep_bytes` the
bytes of described pages are kept as well. Bytes that are read back are checked against their checksum.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from privmem.nodeagent.content import LITERAL, ZERO, ContentTable
from privmem.nodeagent.device._granule_kernel import NIL
from privmem.nodeagent.device.compression import CompressionEngine
from privmem.nodeagent.device.granules import Granules
from privmem.nodeagent.device.kept import CompressedPages, RawPages
from privmem.scheduler.abi import PAGE_SIZE
from privmem.scheduler.errors import InvariantError, ProtocolError

_EMPTY, _DESCRIBED, _KEPT = 0, 1, 2
_COLUMNS = ("_source", "_index", "_version")
#: Pages whose bytes are made or read at a time: 1 MiB, which the caches of a CPU hold.
_CHUNK_PAGES = 256
_COUNTS = ("stored_pages", "same_filled_pages", "incompressible_pages", "stored_bytes")


class PageStore:
    """Pages [0, capacity_pages) of a device. The arrays below have an entry a page; they start as zero pages of
    the machine that we run on, so what is never used costs nothing.

    _state    uint8    0 nothing, 1 described, 2 its bytes are kept (kept.py)
    _source, _index, _version   uint16, uint32, uint16: the description
    _first    int64    compressed: first granule of the page's chain, NIL without
    _stored   uint16   compressed: bytes before rounding to granules
    """

    def __init__(
        self,
        capacity_pages: int,
        physical_bytes: int,
        content: ContentTable,
        engine: CompressionEngine | None,
        keep_bytes: bool = False,
    ) -> None:
        self.capacity_pages = capacity_pages
        self.physical_bytes = physical_bytes
        self.content = content
        self.engine = engine
        self.keep_bytes = keep_bytes
        self._state = np.zeros(capacity_pages, dtype=np.uint8)
        self._source = np.zeros(capacity_pages, dtype=np.uint16)
        self._index = np.zeros(capacity_pages, dtype=np.uint32)
        self._version = np.zeros(capacity_pages, dtype=np.uint16)
        self._granules: Granules | None = None
        self._raw = RawPages(capacity_pages)
        if engine is not None:
            self._granules = Granules(physical_bytes // engine.granule_bytes, engine.granule_bytes)
            self._blocks = CompressedPages(capacity_pages, engine, self._granules)
            self._first = np.zeros(capacity_pages, dtype=np.int64)
            self._stored = np.zeros(capacity_pages, dtype=np.uint16)
        self.stored_pages = 0
        #: Of a compressed store, as all below: pages that are one word over and over, and those that are raw.
        self.same_filled_pages = 0
        self.incompressible_pages = 0
        self.stored_bytes = 0

    # -- what it holds

    @property
    def used_bytes(self) -> int:
        """Physical memory in use, in whole granules."""
        return self.stored_pages * PAGE_SIZE if self._granules is None else self._granules.used_bytes

    @property
    def room_pages(self) -> int:
        """Pages that surely fit, even if none of them compresses."""
        if self._granules is None or self.engine is None:
            return self.physical_bytes // PAGE_SIZE - self.stored_pages
        return self._granules.free // self.engine.granules_max

    def holds(self, dpa: np.ndarray) -> np.ndarray:
        """Which of these pages hold something."""
        if len(dpa) and not 0 <= int(dpa.min()) <= int(dpa.max()) < self.capacity_pages:
            raise ProtocolError(
                f"pages {dpa.min()}..{dpa.max()} are not all of a device of {self.capacity_pages} pages"
            )
        return self._state[dpa] != _EMPTY

    # -- changing it

    def store(
        self,
        dpa: np.ndarray,
        source: np.ndarray,
        index: np.ndarray,
        version: np.ndarray,
        literal: np.ndarray,
    ) -> None:
        """Keep pages; columns as in messages.StorePages. What was there before is gone.

        Raises ProtocolError for rows that do not fit together, InvariantError when memory does not suffice: whoever
        stores holds a credit.
        """
        is_literal = source == LITERAL
        if len({len(dpa), len(source), len(index), len(version)}) != 1:
            raise ProtocolError("the columns of stored pages have different lengths")
        if literal.shape != (int(is_literal.sum()), PAGE_SIZE) or literal.dtype != np.uint8:
            raise ProtocolError(f"{is_literal.sum()} literal pages came with bytes of shape {literal.shape}")
        self.content.check(source[~is_literal])
        if len(np.unique(dpa)) != len(dpa):
            self._store_one_by_one(dpa, source, index, version, literal)
            return
        self.free(dpa[self.holds(dpa)])
        if len(dpa) > self.room_pages:
            raise InvariantError(f"{len(dpa)} pages to store, but only {self.room_pages} surely fit")
        self._put(dpa, source, index, version, literal)

    def _put(
        self,
        dpa: np.ndarray,
        source: np.ndarray,
        index: np.ndarray,
        version: np.ndarray,
        literal: np.ndarray,
    ) -> None:
        """Pages that hold nothing, and for which there is room."""
        is_literal = source == LITERAL
        keep = is_literal | self.keep_bytes
        if self._granules is None:
            body = np.cumsum(is_literal) - 1
            pages = self._bytes_of(source[keep], index[keep], version[keep], literal, body[keep])
            self._raw.keep(dpa[keep], pages)
        else:
            self._compress(dpa, source, index, version, literal, keep)
        self._state[dpa] = np.where(keep, _KEPT, _DESCRIBED)
        self._source[dpa], self._index[dpa], self._version[dpa] = source, index, version
        self.stored_pages += len(dpa)

    def store_what_fits(
        self,
        dpa: np.ndarray,
        source: np.ndarray,
        index: np.ndarray,
        version: np.ndarray,
        literal: np.ndarray,
    ) -> np.ndarray:
        """`store` by somebody without a promise: which rows found no room, bool. What those pages held before is
        gone nevertheless, for they were overwritten. Each page comes once; first all give back what they had, then
        they come in the order of the rows until no further page would surely fit.
        """
        self.free(dpa[self.holds(dpa)])
        refused = np.zeros(len(dpa), dtype=bool)
        bodies = np.concatenate([[0], np.cumsum(source == LITERAL)])
        at = 0
        while at < len(dpa) and self.room_pages:
            end = at + self._fitting(source[at:], index[at:], version[at:])
            rows = slice(at, end)
            self._put(dpa[rows], source[rows], index[rows], version[rows], literal[bodies[at] : bodies[end]])
            at = end
        refused[at:] = True
        return refused

    def _fitting(self, source: np.ndarray, index: np.ndarray, version: np.ndarray) -> int:
        """How many rows from the first on fit, one after the other, each while a page surely does; at least one. Of
        rows whose size is known only when they are compressed, as many as surely fit.
        """
        if len(source) <= self.room_pages:
            return len(source)
        if self._granules is None or self.engine is None or self.keep_bytes or (source == LITERAL).any():
            return self.room_pages
        _, granules = self.engine.measure(self.content, source, index, version)
        before = np.concatenate([[0], np.cumsum(granules[:-1])])
        return int(np.count_nonzero(self._granules.free - before >= self.engine.granules_max))

    def _store_one_by_one(self, dpa: np.ndarray, *rest: np.ndarray) -> None:
        """A batch in which a page occurs twice: the later row overwrites the earlier."""
        source, index, version, literal = rest
        at = np.cumsum(source == LITERAL)
        for row in range(len(dpa)):
            one = slice(row, row + 1)
            is_literal = int(source[row] == LITERAL)
            page = literal[at[row] - is_literal : at[row]]
            self.store(dpa[one], source[one], index[one], version[one], page)

    def _bytes_of(
        self,
        source: np.ndarray,
        index: np.ndarray,
        version: np.ndarray,
        literal: np.ndarray,
        body: np.ndarray,
    ) -> np.ndarray:
        """The bytes of these rows, uint8[n, 4096]; those of a literal one are literal[body]."""
        is_literal = source == LITERAL
        if is_literal.all():
            own = literal[int(body[0]) : int(body[-1]) + 1] if len(body) else literal[:0]
            return own if len(own) == len(body) else literal[body]
        pages = self.content.pages(np.where(is_literal, ZERO, source), index, version)
        pages[is_literal] = literal[body[is_literal]]
        return pages

    def _compress(
        self,
        dpa: np.ndarray,
        source: np.ndarray,
        index: np.ndarray,
        version: np.ndarray,
        literal: np.ndarray,
        keep: np.ndarray,
    ) -> None:
        """Give each page its granules, and fill those of the pages whose bytes are kept."""
        assert self.engine is not None and self._granules is not None
        stored = np.zeros(len(dpa), dtype=np.int64)
        granules = np.zeros(len(dpa), dtype=np.int64)
        known = ~keep
        if known.any():
            measured = self.engine.measure(self.content, source[known], index[known], version[known])
            stored[known], granules[known] = measured
        first = np.full(len(dpa), NIL, dtype=np.int64)
        first[known] = self._granules.take(granules[known])
        kept = np.flatnonzero(keep)
        body = np.cumsum(source == LITERAL) - 1
        for start in range(0, len(kept), _CHUNK_PAGES):
            at = kept[start : start + _CHUNK_PAGES]
            pages = self._bytes_of(source[at], index[at], version[at], literal, body[at])
            lengths, data = self.engine.compress(pages)
            stored[at], granules[at] = lengths.sum(axis=1), self.engine.granules_of(lengths)
            first[at] = self._granules.take(granules[at])
            self._granules.write(first[at], lengths, data)
            self._blocks.keep(dpa[at], pages, lengths)
        self._first[dpa], self._stored[dpa] = first, stored
        self._count_compressed(stored, 1)
        self.engine.count(stored, granules)

    def _count_compressed(self, stored: np.ndarray, sign: int) -> None:
        self.same_filled_pages += sign * int((stored == 0).sum())
        self.incompressible_pages += sign * int((stored == PAGE_SIZE).sum())
        self.stored_bytes += sign * int(stored.sum(dtype=np.int64))

    def free(self, dpa: np.ndarray) -> None:
        """Forget pages, and zero what was behind them. Raises ProtocolError for one that holds nothing."""
        if not self.holds(dpa).all() or len(np.unique(dpa)) != len(dpa):
            raise ProtocolError("a page is freed in which nothing is stored")
        kept = dpa[self._state[dpa] == _KEPT]
        if self._granules is None:
            self._raw.forget(kept)
        else:
            self._granules.wipe(self._first[kept])
            self._granules.give(self._first[dpa])
            self._count_compressed(self._stored[dpa], -1)
            self._first[dpa], self._stored[dpa] = NIL, 0
        self._state[dpa] = _EMPTY
        for name in _COLUMNS:
            getattr(self, name)[dpa] = 0
        self.stored_pages -= len(dpa)

    def clear(self, start: int, nr_pages: int) -> int:
        """Free whatever pages [start, start + nr_pages) hold; returns how many held something."""
        held = np.flatnonzero(self._state[start : start + nr_pages]) + start
        self.free(held)
        return len(held)

    # -- reading it

    def load(self, dpa: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(source, index, version, literal) of pages, as they were stored. Raises ProtocolError for one that holds
        nothing, InvariantError for bytes that are not those that were stored.
        """
        if not self.holds(dpa).all():
            raise ProtocolError("a page is loaded in which nothing is stored")
        source = self._source[dpa]
        kept = np.flatnonzero(self._state[dpa] == _KEPT)
        is_literal = source[kept] == LITERAL
        literal = np.empty((int(is_literal.sum()), PAGE_SIZE), dtype=np.uint8)
        filled = 0
        for start in range(0, len(kept), _CHUNK_PAGES):
            end = start + _CHUNK_PAGES
            pages = self._read(dpa[kept[start:end]])
            nr = int(is_literal[start:end].sum())
            literal[filled : filled + nr] = pages if nr == len(pages) else pages[is_literal[start:end]]
            filled += nr
        return source, self._index[dpa], self._version[dpa], literal

    def page_bytes(self, dpa: int) -> np.ndarray:
        """The 4096 bytes of one stored page, uint8."""
        one = np.array([dpa])
        source, index, version, _ = self.load(one)
        if int(self._state[dpa]) == _KEPT:
            page: np.ndarray = self._read(one)[0]
            return page
        return self.content.pages(source, index, version)[0]

    def _read(self, dpa: np.ndarray) -> np.ndarray:
        """The bytes of kept pages, checked."""
        if self._granules is None:
            return self._raw.read(dpa)
        return self._blocks.read(dpa, self._first[dpa])

    # -- state

    def validate(self) -> None:
        """Raise InvariantError unless the counts equal a recount, every granule has one owner and all kept
        bytes read back.
        """
        held = np.flatnonzero(self._state)
        if len(held) != self.stored_pages:
            raise InvariantError(f"{self.stored_pages} pages counted, {len(held)} held")
        kept = held[self._state[held] == _KEPT]
        for start in range(0, len(kept), _CHUNK_PAGES):
            self._read(kept[start : start + _CHUNK_PAGES])
        if self._granules is None:
            return
        stored = self._stored[held].astype(np.int64)
        recount = (int((stored == 0).sum()), int((stored == PAGE_SIZE).sum()), int(stored.sum()))
        counted = (self.same_filled_pages, self.incompressible_pages, self.stored_bytes)
        if recount != counted:
            raise InvariantError(f"same-filled, raw pages and bytes: counted {counted}, but {recount}")
        if ((self._first[held] == NIL) != (stored == 0)).any():
            raise InvariantError("a page has granules but no bytes, or bytes but no granules")
        self._granules.validate(self._first[held])

    def snapshot(self) -> dict[str, Any]:
        """The whole state; arrays hold rows of the stored pages only."""
        held = np.flatnonzero(self._state).astype(np.int32)
        state: dict[str, Any] = {name: getattr(self, name) for name in _COUNTS}
        state["dpa"] = held
        state["columns"] = [self._state[held], *(getattr(self, name)[held] for name in _COLUMNS)]
        kept = held[self._state[held] == _KEPT]
        state["kept"] = self._of_kept().snapshot(kept) if len(kept) else []
        if self._granules is not None and self.engine is not None:
            state["compressed"] = [self._first[held], self._stored[held]]
            state["granules"] = self._granules.snapshot()
            state["memory"] = self._granules.rows(self._granules.chains(self._first[kept]))
            state["counts"] = dict(self.engine.counts)
        return state

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Inverse of `snapshot`."""
        held = snapshot["dpa"]
        for name, column in zip(("_state", *_COLUMNS), snapshot["columns"], strict=True):
            self._refill(name, held, column)
        for name in _COUNTS:
            setattr(self, name, snapshot[name])
        kept = held[self._state[held] == _KEPT]
        self._of_kept().restore(kept, snapshot["kept"])
        if self._granules is not None and self.engine is not None:
            for name, column in zip(("_first", "_stored"), snapshot["compressed"], strict=True):
                self._refill(name, held, column)
            self._granules.restore(snapshot["granules"])
            self._granules.refill(self._granules.chains(self._first[kept]), snapshot["memory"])
            self.engine.counts = dict(snapshot["counts"])

    def _refill(self, name: str, held: np.ndarray, column: np.ndarray) -> None:
        array = np.zeros_like(getattr(self, name))
        array[held] = column
        setattr(self, name, array)

    def _of_kept(self) -> RawPages | CompressedPages:
        return self._raw if self._granules is None else self._blocks
