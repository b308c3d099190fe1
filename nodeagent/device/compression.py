"""The compression engine of a device: how many bytes of physical memory a page takes.

As in Linux's zram, a page that is one machine word over and over takes no memory, and what does not shrink is
kept raw. A page is cut into blocks that are compressed apart; each block takes whole granules. Sizes of
described pages are remembered by what they hold (`ContentTable.keys`), and only there: forgetting one, as a
restored device does, costs time and changes no answer.

Left out: the SRAM block cache and the tables of a real expander (indirection, free lists), which take memory
of their own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from privmem.nodeagent.content import ContentTable, is_same_filled
from privmem.nodeagent.device.codecs import make_codec
from privmem.scheduler.abi import PAGE_SIZE
from privmem.scheduler.errors import InvariantError

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

    def compress(self, page: np.ndarray) -> list[bytes]:
        """The blocks of a page (uint8[4096]) as they are kept; one as long as a block is raw. None at all for a
        same-filled page.
        """
        if is_same_filled(page.reshape(1, PAGE_SIZE))[0]:
            return []
        raw = page.tobytes()
        blocks = []
        for at in range(0, PAGE_SIZE, self.block_bytes):
            block = raw[at : at + self.block_bytes]
            stored = self.codec.compress(block)
            blocks.append(stored if len(stored) < self.block_bytes else block)
        return blocks

    def restore(self, blocks: list[bytes]) -> bytes:
        """The page that `compress` was given, unless it was same-filled."""
        return b"".join(
            block if len(block) == self.block_bytes else self.codec.decompress(block, self.block_bytes)
            for block in blocks
        )

    def granules_of(self, block_lengths: list[int]) -> int:
        """Granules that blocks of these stored lengths take."""
        return sum(-(-length // self.granule_bytes) for length in block_lengths)

    def measure(
        self, content: ContentTable, source: np.ndarray, index: np.ndarray, version: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(stored bytes, granules) of described pages, int64 both; 0 and 0 is a same-filled page."""
        keys = content.keys(source, index, version).tolist()
        found = [self._recall(key) for key in keys]
        unknown = [at for at, packed in enumerate(found) if packed < 0]
        for start in range(0, len(unknown), _CHUNK_PAGES):
            at = unknown[start : start + _CHUNK_PAGES]
            self._measure_new(keys, at, content.pages(source[at], index[at], version[at]), found)
        packed = np.array(found, dtype=np.int64)
        return packed >> _GRANULE_BITS, packed & ((1 << _GRANULE_BITS) - 1)

    def _measure_new(self, keys: list[int], at: list[int], pages: np.ndarray, found: list[int]) -> None:
        for row, page in zip(at, pages, strict=True):
            packed = self._recall(keys[row])  # a batch may hold one content twice
            if packed < 0:
                lengths = [len(block) for block in self.compress(page)]
                packed = sum(lengths) << _GRANULE_BITS | self.granules_of(lengths)
                self._remember(keys[row], packed)
            found[row] = packed

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
