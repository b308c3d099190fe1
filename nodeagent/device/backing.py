"""The content store of a device: what is in each of its pages, and the physical memory behind it.

A described page is kept as its description and, on a compressed device, as the granules that its real bytes
take. A literal page is kept byte for byte: compressed into its granules, or as it is. Reading one back checks
its checksum.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from privmem.nodeagent.content import LITERAL, ContentTable
from privmem.nodeagent.device.compression import CompressionEngine, Stored
from privmem.nodeagent.device._granule_kernel import NIL
from privmem.nodeagent.device.granules import Granules
from privmem.scheduler.abi import PAGE_SIZE
from privmem.scheduler.errors import InvariantError, ProtocolError


class PageStore:
    """Pages [0, capacity_pages) of a device.

    held     uint8   1 where something is stored
    source, index, version: the description (uint16, uint32, uint16)
    first    int32   compressed: first granule of the page's chain, NIL without
    stored   int32   compressed: bytes before rounding to granules
    Arrays start as zero pages of the machine that we run on: what is never used costs nothing.
    """

    def __init__(
        self,
        capacity_pages: int,
        physical_bytes: int,
        content: ContentTable,
        engine: CompressionEngine | None,
    ) -> None:
        self.capacity_pages = capacity_pages
        self.physical_bytes = physical_bytes
        self.content = content
        self.engine = engine
        self.held = np.zeros(capacity_pages, dtype=np.uint8)
        self.source = np.zeros(capacity_pages, dtype=np.uint16)
        self.index = np.zeros(capacity_pages, dtype=np.uint32)
        self.version = np.zeros(capacity_pages, dtype=np.uint16)
        self.first = np.full(capacity_pages, NIL, dtype=np.int32)
        self.stored = np.zeros(capacity_pages, dtype=np.int32)
        self.granules: Granules | None = None
        self.memory = np.zeros((0, PAGE_SIZE), dtype=np.uint8)
        if engine is not None:
            nr_granules = physical_bytes // engine.granule_size
            self.granules = Granules(nr_granules)
            self.memory = np.zeros((nr_granules, engine.granule_size), dtype=np.uint8)
        #: Literal pages: dpa -> [crc32 of the page, length of each block, the page itself where it is not in
        #: granules].
        self.literal: dict[int, list[Any]] = {}
        self.stored_pages = 0
        self.same_filled_pages = 0
        self.stored_bytes = 0

    # -- what it holds
    # --------------------------------------------------------------------------------------------

    @property
    def used_bytes(self) -> int:
        """Physical memory in use, in whole granules."""
        if self.granules is None or self.engine is None:
            return self.stored_pages * PAGE_SIZE
        return (self.granules.nr_granules - self.granules.free) * self.engine.granule_size

    @property
    def room_pages(self) -> int:
        """Pages that surely fit, even if none of them compresses."""
        if self.granules is None or self.engine is None:
            return self.physical_bytes // PAGE_SIZE - self.stored_pages
        return self.granules.free // self.engine.granules_max

    # -- changing it
    # ----------------------------------------------------------------------------------------------

    def store(self, dpa: int, source: int, index: int, version: int, page: np.ndarray | None) -> None:
        """Keep one page; `page` are the bytes of a literal one. What was there before is gone."""
        if not 0 <= dpa < self.capacity_pages:
            raise ProtocolError(f"page {dpa} is not of a device of {self.capacity_pages} pages")
        if self.held[dpa]:
            self.free(dpa)
        if self.room_pages < 1:
            raise ProtocolError(f"page {dpa} was stored beyond the credit that the device gave")
        if self.engine is not None:
            self._store_compressed(dpa, self.engine, (source, index, version), page)
        elif page is not None:
            self.literal[dpa] = [zlib.crc32(page.data), [], page.tobytes()]
        self.held[dpa] = 1
        self.source[dpa], self.index[dpa], self.version[dpa] = source, index, version
        self.stored_pages += 1

    def _store_compressed(
        self, dpa: int, engine: CompressionEngine, key: tuple[int, int, int], page: np.ndarray | None
    ) -> None:
        if page is None:
            layout = engine.known(key) or engine.measure_described(key, self.content.page(*key))
        else:
            blocks = engine.compress(page)
            layout = engine.lay_out([len(block) for block in blocks])
            filled = page[:8].tobytes() if not blocks else b""
            self.literal[dpa] = [zlib.crc32(page.data), list(layout.block_bytes), filled]
        self._take(dpa, layout)
        if page is not None:
            self._write(dpa, blocks)

    def _take(self, dpa: int, layout: Stored) -> None:
        assert self.granules is not None
        self.first[dpa] = self.granules.take(layout.granules) if layout.granules else NIL
        self.stored[dpa] = layout.stored_bytes
        self.stored_bytes += layout.stored_bytes
        self.same_filled_pages += not layout.granules

    def _write(self, dpa: int, blocks: list[bytes]) -> None:
        """Blocks into the page's granules, each from the start of a granule."""
        assert self.granules is not None and self.engine is not None
        size = self.engine.granule_size
        chain = iter(self.granules.chain(int(self.first[dpa])))
        for block in blocks:
            for at in range(0, len(block), size):
                part = np.frombuffer(block[at : at + size], dtype=np.uint8)
                self.memory[next(chain), : len(part)] = part

    def free(self, dpa: int) -> None:
        """Forget a page, and zero what was behind it. A page that holds nothing is an error of the host."""
        if not 0 <= dpa < self.capacity_pages or not self.held[dpa]:
            raise ProtocolError(f"page {dpa} is freed, but nothing is stored there")
        if self.granules is not None:
            first = int(self.first[dpa])
            if first == NIL:
                self.same_filled_pages -= 1
            else:
                if dpa in self.literal:
                    self.memory[self.granules.chain(first)] = 0
                self.granules.give(first)
            self.stored_bytes -= int(self.stored[dpa])
            self.first[dpa], self.stored[dpa] = NIL, 0
        self.literal.pop(dpa, None)
        self.held[dpa] = self.source[dpa] = self.index[dpa] = self.version[dpa] = 0
        self.stored_pages -= 1

    # -- reading it
    # -----------------------------------------------------------------------------------------------

    def load_literal(self, dpa: int) -> np.ndarray:
        """The bytes of a literal page. Raises InvariantError when they are not those that were stored."""
        crc, lengths, kept = self.literal[dpa]
        if self.engine is None:
            raw = kept
        elif not lengths:
            raw = kept * (PAGE_SIZE // len(kept))
        else:
            raw = self.engine.restore(self._read(dpa, lengths))
        page = np.frombuffer(raw, dtype=np.uint8)
        if zlib.crc32(page.data) != crc:
            raise InvariantError(f"page {dpa} does not read back as it was stored")
        return page

    def _read(self, dpa: int, lengths: list[int]) -> list[bytes]:
        assert self.granules is not None and self.engine is not None
        size = self.engine.granule_size
        chain = self.granules.chain(int(self.first[dpa]))
        blocks, at = [], 0
        for length in lengths:
            nr = -(-length // size)
            blocks.append(self.memory[chain[at : at + nr]].tobytes()[:length])
            at += nr
        return blocks

    def page_bytes(self, dpa: int) -> np.ndarray:
        """The 4096 bytes of any stored page."""
        if int(self.source[dpa]) == LITERAL:
            return self.load_literal(dpa)
        return self.content.page(int(self.source[dpa]), int(self.index[dpa]), int(self.version[dpa]))

    # -- state
    # ----------------------------------------------------------------------------------------------------

    def validate(self) -> None:
        """Raise InvariantError unless the counts equal a recount and every granule has one owner."""
        held = np.flatnonzero(self.held)
        if len(held) != self.stored_pages or int(self.stored.sum()) != self.stored_bytes:
            raise InvariantError("stored pages or bytes are miscounted")
        if set(self.literal) != set(held[self.source[held] == LITERAL].tolist()):
            raise InvariantError("a literal page has lost its bytes")
        if self.granules is not None:
            chains = self.first[held]
            if int((chains == NIL).sum()) != self.same_filled_pages:
                raise InvariantError("same-filled pages are miscounted")
            self.granules.validate(chains[chains != NIL])

    _ARRAYS = ("held", "source", "index", "version", "first", "stored")
    _COUNTS = ("stored_pages", "same_filled_pages", "stored_bytes")

    def snapshot(self) -> dict[str, Any]:
        """The whole state; of the physical memory only what literal pages use."""
        state: dict[str, Any] = {name: getattr(self, name).copy() for name in self._ARRAYS}
        state |= {name: getattr(self, name) for name in self._COUNTS}
        state["literal"] = [[dpa, *self.literal[dpa]] for dpa in sorted(self.literal)]
        if self.granules is not None:
            state["granules"] = self.granules.snapshot()
            state["memory"] = self.memory[self._literal_granules()]
        return state

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Inverse of `snapshot`."""
        for name in self._ARRAYS:
            getattr(self, name)[:] = snapshot[name]
        for name in self._COUNTS:
            setattr(self, name, snapshot[name])
        self.literal = {dpa: [crc, list(lengths), kept] for dpa, crc, lengths, kept in snapshot["literal"]}
        if self.granules is not None:
            self.granules.restore(snapshot["granules"])
            self.memory[:] = 0
            self.memory[self._literal_granules()] = snapshot["memory"]

    def _literal_granules(self) -> list[int]:
        assert self.granules is not None
        chains = [self.granules.chain(int(self.first[dpa])) for dpa in sorted(self.literal)]
        return [granule for chain in chains for granule in chain]
