"""The content store of a device: what is in each of its pages, and the physical memory behind it.

A described page is kept as its description and, on a compressed device, as the granules that its real bytes
take. A literal page is kept byte for byte: compressed into its granules, or as it is. With `keep_bytes` the
bytes of described pages are kept as well. Bytes that are read back are checked against their checksum.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from privmem.nodeagent.content import LITERAL, ContentTable
from privmem.nodeagent.device._granule_kernel import NIL
from privmem.nodeagent.device.compression import CompressionEngine
from privmem.nodeagent.device.granules import Granules
from privmem.scheduler.abi import PAGE_SIZE
from privmem.scheduler.errors import InvariantError, ProtocolError

_EMPTY, _DESCRIBED, _KEPT = 0, 1, 2
_COLUMNS = ("_source", "_index", "_version")
_COUNTS = ("stored_pages", "same_filled_pages", "incompressible_pages", "stored_bytes")

#: Of a page whose bytes are kept: crc32, length of each block, and the bytes that are not in granules (the
#: whole page of an uncompressed store, the one word of a same-filled page, else none).
_Kept = tuple[int, list[int], bytes]


class PageStore:
    """Pages [0, capacity_pages) of a device. The arrays below have an entry a page; they start as zero pages of
    the machine that we run on, so what is never used costs nothing.

    _state    uint8    0 nothing, 1 described, 2 its bytes are kept (`_kept` knows more)
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
        self._kept: dict[int, _Kept] = {}
        self._granules: Granules | None = None
        if engine is not None:
            self._granules = Granules(physical_bytes // engine.granule_bytes, engine.granule_bytes)
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
        keep = is_literal | self.keep_bytes
        if self._granules is None:
            self._keep_raw(dpa[keep], self._bytes_of(keep, source, index, version, literal))
        else:
            self._compress(dpa, source, index, version, literal, keep)
        self._state[dpa] = np.where(keep, _KEPT, _DESCRIBED)
        self._source[dpa], self._index[dpa], self._version[dpa] = source, index, version
        self.stored_pages += len(dpa)

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
        keep: np.ndarray,
        source: np.ndarray,
        index: np.ndarray,
        version: np.ndarray,
        literal: np.ndarray,
    ) -> np.ndarray:
        """The bytes of the rows that `keep` names, uint8[n, 4096]."""
        is_literal = source[keep] == LITERAL
        pages = np.empty((len(is_literal), PAGE_SIZE), dtype=np.uint8)
        pages[is_literal] = literal
        known = ~is_literal
        pages[known] = self.content.pages(source[keep][known], index[keep][known], version[keep][known])
        return pages

    def _keep_raw(self, dpa: np.ndarray, pages: np.ndarray) -> None:
        for at, page in zip(dpa.tolist(), pages, strict=True):
            raw = page.tobytes()
            self._kept[at] = (zlib.crc32(raw), [], raw)

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
        blocks: dict[int, list[bytes]] = {}
        if keep.any():
            pages = self._bytes_of(keep, source, index, version, literal)
            for row, page in zip(np.flatnonzero(keep).tolist(), pages, strict=True):
                blocks[row] = self.engine.compress(page)
                lengths = [len(block) for block in blocks[row]]
                stored[row], granules[row] = sum(lengths), self.engine.granules_of(lengths)
                alone = b"" if lengths else page[:8].tobytes()
                self._kept[int(dpa[row])] = (zlib.crc32(page.tobytes()), lengths, alone)
        first = self._granules.take(granules)
        for row, parts in blocks.items():
            self._write(int(first[row]), parts)
        self._first[dpa], self._stored[dpa] = first, stored
        self._count_compressed(stored, 1)
        self.engine.count(stored, granules)

    def _write(self, first: int, blocks: list[bytes]) -> None:
        """Blocks into the granules of a chain, each from the start of a granule."""
        assert self.engine is not None and self._granules is not None
        chain = self._granules.chain(first, self.engine.granules_max)
        at = 0
        for block in blocks:
            nr = self.engine.granules_of([len(block)])
            self._granules.write(chain[at : at + nr], block)
            at += nr

    def _count_compressed(self, stored: np.ndarray, sign: int) -> None:
        self.same_filled_pages += sign * int((stored == 0).sum())
        self.incompressible_pages += sign * int((stored == PAGE_SIZE).sum())
        self.stored_bytes += sign * int(stored.sum(dtype=np.int64))

    def free(self, dpa: np.ndarray) -> None:
        """Forget pages, and zero what was behind them. Raises ProtocolError for one that holds nothing."""
        if not self.holds(dpa).all() or len(np.unique(dpa)) != len(dpa):
            raise ProtocolError("a page is freed in which nothing is stored")
        for at in dpa[self._state[dpa] == _KEPT].tolist():
            del self._kept[at]
            if self._granules is not None:
                self._granules.zero(self._chain(at))
        if self._granules is not None:
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
        literal = np.zeros((int((source == LITERAL).sum()), PAGE_SIZE), dtype=np.uint8)
        filled = 0
        for at in dpa[self._state[dpa] == _KEPT].tolist():
            page = self._read(at)
            if int(self._source[at]) == LITERAL:
                literal[filled] = page
                filled += 1
        return source, self._index[dpa], self._version[dpa], literal

    def page_bytes(self, dpa: int) -> np.ndarray:
        """The 4096 bytes of one stored page, uint8."""
        one = np.array([dpa])
        source, index, version, _ = self.load(one)
        if int(self._state[dpa]) == _KEPT:
            return self._read(dpa)
        return self.content.pages(source, index, version)[0]

    def _read(self, dpa: int) -> np.ndarray:
        """The bytes of a kept page, checked."""
        crc, lengths, alone = self._kept[dpa]
        raw = alone * (PAGE_SIZE // len(alone)) if alone else self._restore(dpa, lengths)
        if len(raw) != PAGE_SIZE or zlib.crc32(raw) != crc:
            raise InvariantError(f"page {dpa} does not read back as it was stored")
        return np.frombuffer(raw, dtype=np.uint8)

    def _restore(self, dpa: int, lengths: list[int]) -> bytes:
        assert self._granules is not None and self.engine is not None
        chain = self._chain(dpa)
        blocks, at = [], 0
        for length in lengths:
            nr = self.engine.granules_of([length])
            blocks.append(self._granules.read(chain[at : at + nr], length))
            at += nr
        return self.engine.restore(blocks)

    def _chain(self, dpa: int) -> np.ndarray:
        assert self._granules is not None and self.engine is not None
        return self._granules.chain(int(self._first[dpa]), self.engine.granules_max)

    # -- state

    def validate(self) -> None:
        """Raise InvariantError unless the counts equal a recount, every granule has one owner and all kept
        bytes read back.
        """
        held = np.flatnonzero(self._state)
        kept = held[self._state[held] == _KEPT].tolist()
        if len(held) != self.stored_pages or sorted(self._kept) != kept:
            raise InvariantError(
                f"{self.stored_pages} pages counted, {len(held)} held, {len(kept)} with bytes"
            )
        for at in kept:
            self._read(at)
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
        state["kept"] = [[dpa, *self._kept[dpa]] for dpa in sorted(self._kept)]
        if self._granules is not None and self.engine is not None:
            state["compressed"] = [self._first[held], self._stored[held]]
            state["granules"] = self._granules.snapshot()
            state["memory"] = self._granules.rows(self._kept_granules())
            state["counts"] = dict(self.engine.counts)
        return state

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Inverse of `snapshot`."""
        held = snapshot["dpa"]
        for name, column in zip(("_state", *_COLUMNS), snapshot["columns"], strict=True):
            self._refill(name, held, column)
        for name in _COUNTS:
            setattr(self, name, snapshot[name])
        self._kept = {dpa: (crc, list(lengths), alone) for dpa, crc, lengths, alone in snapshot["kept"]}
        if self._granules is not None and self.engine is not None:
            for name, column in zip(("_first", "_stored"), snapshot["compressed"], strict=True):
                self._refill(name, held, column)
            self._granules.restore(snapshot["granules"])
            self._granules.refill(self._kept_granules(), snapshot["memory"])
            self.engine.counts = dict(snapshot["counts"])

    def _refill(self, name: str, held: np.ndarray, column: np.ndarray) -> None:
        array = np.zeros_like(getattr(self, name))
        array[held] = column
        setattr(self, name, array)

    def _kept_granules(self) -> np.ndarray:
        """All granules that hold bytes, by page and in the order of each chain."""
        chains = [self._chain(dpa) for dpa in sorted(self._kept)]
        return np.concatenate([np.zeros(0, dtype=np.int64), *chains])
