"""The compression engine of a device: how many bytes of physical memory a page takes.

As in Linux's zram, a page that is one machine word over and over takes no memory, and what does not shrink is
kept raw. A page is cut into blocks that are compressed apart; each block takes whole granules. Sizes of
described pages are remembered by what they hold (`ContentTable.keys`), and only there: forgetting one, as a
restored device does, costs time and changes no answer.

Left out: the SRAM block cache and the tables of a real expander (indirection, free lists), which take memory
of their own.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from privmem.nodeagent.content import ContentTable, is_same_filled
from privmem.nodeagent.device.codecs import Block, make_codec
from privmem.scheduler.abi import PAGE_SIZE
from privmem.scheduler.errors import InvariantError

#: Source, index and version of described pages.
Columns: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]

#: Sizes in the young half of the memo; when it is full it becomes the old half, and the old one is dropped.
MEMO_PAGES = 1 << 17
#: Pages that are made at a time to be measured: 1 MiB.
_CHUNK_PAGES = 256
_GRANULE_BITS = 16

#: Counted over all pages that came in, see `CompressionEngine.count`.
COUNTS = (
    "pages_in",
    "same_filled_pages_in",
    "incompressible_pages_in",
    "logical_bytes_in",
    "compressed_bytes_in",
    "granule_bytes_in",
)


class CompressionEngine:
    """Spec: {"codec", "level", "block", "granule"}, sizes in bytes; block divides the page, granule the block."""

    def __init__(self, spec: dict[str, Any], memo_pages: int = MEMO_PAGES) -> None:
        self.codec = make_codec(spec["codec"], spec["level"])
        self.block_bytes: int = spec["block"]
        self.granule_bytes: int = spec["granule"]
        if PAGE_SIZE % self.block_bytes or self.block_bytes % self.granule_bytes:
            raise InvariantError(
                f"blocks of {self.block_bytes} B in granules of {self.granule_bytes} B make no page"
            )
        #: Granules of a page that does not compress at all.
        self.granules_max = PAGE_SIZE // self.granule_bytes
        self.counts = dict.fromkeys(COUNTS, 0)
        self._memo_pages = memo_pages
        self._young: dict[int, int] = {}
        self._old: dict[int, int] = {}

    def compress(self, pages: np.ndarray) -> tuple[np.ndarray, bytes]:
        """(stored bytes of each block, int64[n, blocks of a page]; the blocks, one after the other) of pages
        uint8[n, 4096]. A block as long as a block is raw. A same-filled page has blocks of 0 bytes.
        """
        size, compress = self.block_bytes, self.codec.compress
        lengths = np.zeros((len(pages), PAGE_SIZE // size), dtype=np.int64)
        varied = ~is_same_filled(pages)
        raw = np.ascontiguousarray(pages).reshape(-1).data
        blocks: list[Block] = []
        for row in np.flatnonzero(varied).tolist():
            for at in range(row * PAGE_SIZE, (row + 1) * PAGE_SIZE, size):
                block = raw[at : at + size]
                stored = compress(block)
                blocks.append(stored if len(stored) < size else block)
        lengths[varied] = np.array([len(block) for block in blocks], dtype=np.int64).reshape(
            -1, lengths.shape[1]
        )
        return lengths, b"".join(blocks)

    def restore(self, lengths: np.ndarray, data: bytes) -> np.ndarray:
        """The pages that `compress` was given, uint8[n, 4096]; none of them may be same-filled. Raises
        InvariantError for blocks that are none.
        """
        size, decompress = self.block_bytes, self.codec.decompress
        blocks: list[Block] = []
        view, at = memoryview(data), 0
        for length in lengths.reshape(-1).tolist():
            stored = view[at : at + length]
            blocks.append(stored if length == size else decompress(stored, size))
            at += length
        pages = b"".join(blocks)
        if len(pages) != len(lengths) * PAGE_SIZE:
            raise InvariantError("a stored block does not read back: it gives less than a block")
        return np.frombuffer(pages, dtype=np.uint8).reshape(-1, PAGE_SIZE)

    def granules_of(self, lengths: np.ndarray) -> np.ndarray:
        """Granules of each page whose blocks have these stored lengths, int64."""
        granules: np.ndarray = (-(-lengths // self.granule_bytes)).sum(axis=1)
        return granules

    def measure(
        self, content: ContentTable, source: np.ndarray, index: np.ndarray, version: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(stored bytes, granules) of described pages, int64 both; 0 and 0 is a same-filled page."""
        keys = content.keys(source, index, version).tolist()
        found = [self._recall(key) for key in keys]
        unknown = [at for at, packed in enumerate(found) if packed < 0]
        for start in range(0, len(unknown), _CHUNK_PAGES):
            at = unknown[start : start + _CHUNK_PAGES]
            self._measure_new(keys, at, content, (source, index, version), found)
        packed = np.array(found, dtype=np.int64)
        return packed >> _GRANULE_BITS, packed & ((1 << _GRANULE_BITS) - 1)

    def _measure_new(
        self, keys: list[int], at: list[int], content: ContentTable, columns: Columns, found: list[int]
    ) -> None:
        rows: dict[int, int] = {}  # a batch may hold one content twice
        for row in at:
            found[row] = self._recall(keys[row])
            if found[row] < 0:
                rows.setdefault(keys[row], row)
        first = list(rows.values())
        lengths, _ = self.compress(content.pages(*(column[first] for column in columns)))
        sizes = lengths.sum(axis=1) << _GRANULE_BITS | self.granules_of(lengths)
        for row, packed in zip(first, sizes.tolist(), strict=True):
            self._remember(keys[row], packed)
            rows[keys[row]] = packed
        for row in at:
            if found[row] < 0:
                found[row] = rows[keys[row]]

    def _recall(self, key: int) -> int:
        """Packed sizes of a content, or -1. Key 0 is the zero page, which takes nothing."""
        if key == 0:
            return 0
        packed = self._young.get(key, -1)
        if packed < 0:
            packed = self._old.get(key, -1)
            if packed >= 0:
                self._remember(key, packed)
        return packed

    def _remember(self, key: int, packed: int) -> None:
        if len(self._young) >= self._memo_pages:
            self._old, self._young = self._young, {}
        self._young[key] = packed

    def count(self, stored_bytes: np.ndarray, granules: np.ndarray) -> None:
        """Enter pages of these sizes into `counts`; they came in to be stored."""
        numbers = (
            len(granules),
            int((granules == 0).sum()),
            int((stored_bytes == PAGE_SIZE).sum()),
            len(granules) * PAGE_SIZE,
            int(stored_bytes.sum()),
            int(granules.sum()) * self.granule_bytes,
        )
        for name, number in zip(COUNTS, numbers, strict=True):
            self.counts[name] += number
