"""The compression engine of a device: how many bytes of physical memory a page takes.

As zram does, a page that is one 8-byte word over and over takes no memory at all, and a block that does not
shrink below its own size is kept raw. Every block takes whole granules.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np

from privmem.nodeagent.device.codecs import make_codec
from privmem.scheduler.abi import PAGE_SIZE
from privmem.scheduler.errors import InvariantError

#: Sizes of described pages that are remembered; forgetting one costs time, never changes an answer.
MEMO_PAGES = 1 << 18


@dataclass(frozen=True, slots=True)
class Stored:
    """A page as the device keeps it."""

    #: Bytes of each block; a block as long as the engine's block size is raw. Empty for a same-filled page.
    block_bytes: tuple[int, ...]
    granules: int

    @property
    def stored_bytes(self) -> int:
        """Compressed size, before rounding to granules."""
        return sum(self.block_bytes)


class CompressionEngine:
    """Spec: {"codec", "level", "block", "granule"}, sizes in bytes; block divides the page, granule divides
    the block.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        self.codec = make_codec(spec["codec"], spec["level"])
        self.block_size: int = spec["block"]
        self.granule_size: int = spec["granule"]
        if PAGE_SIZE % self.block_size or self.block_size % self.granule_size:
            raise InvariantError(
                f"blocks of {self.block_size} B in granules of {self.granule_size} B make no page"
            )
        self._memo: OrderedDict[tuple[int, int, int], Stored] = OrderedDict()

    @property
    def granules_max(self) -> int:
        """Granules of a page that does not compress at all."""
        return PAGE_SIZE // self.granule_size

    def measure(self, page: np.ndarray) -> Stored:
        """What a page of real bytes takes."""
        return self.lay_out([len(block) for block in self.compress(page)])

    def measure_described(self, key: tuple[int, int, int], page: np.ndarray) -> Stored:
        """The same for a described page, remembered by its (source, index, version)."""
        stored = self._memo.get(key)
        if stored is None:
            stored = self.measure(page)
            self._memo[key] = stored
            if len(self._memo) > MEMO_PAGES:
                self._memo.popitem(last=False)
        return stored

    def known(self, key: tuple[int, int, int]) -> Stored | None:
        """What was measured before for a described page, if it is remembered."""
        return self._memo.get(key)

    def compress(self, page: np.ndarray) -> list[bytes]:
        """The blocks of a page as they are kept; none for a same-filled page."""
        if is_same_filled(page):
            return []
        raw = page.tobytes()
        blocks = []
        for at in range(0, PAGE_SIZE, self.block_size):
            block = raw[at : at + self.block_size]
            stored = self.codec.compress(block)
            blocks.append(stored if len(stored) < self.block_size else block)
        return blocks

    def restore(self, blocks: list[bytes]) -> bytes:
        """The page that `compress` was given, if it was not same-filled."""
        return b"".join(
            block if len(block) == self.block_size else self.codec.decompress(block, self.block_size)
            for block in blocks
        )

    def lay_out(self, sizes: list[int]) -> Stored:
        """Blocks of these sizes in whole granules."""
        return Stored(tuple(sizes), sum(-(-size // self.granule_size) for size in sizes))


def is_same_filled(page: np.ndarray) -> bool:
    """`page_same_filled` of drivers/block/zram: one machine word all over."""
    words = page.view(np.uint64)
    return bool((words == words[0]).all())
