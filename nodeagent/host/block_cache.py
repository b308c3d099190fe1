"""Block caches of compressed nodes: blocks that the device holds decompressed, near its port.

Models the SRAM block cache of the open compressed memory expander (OCP): an access to a cached block costs what
the device's memory costs, any other waits for decompression as well, and leaves its block in the cache.
Direct-mapped by frame, one line a page: an access names a page. Lines of a device that several hosts share are
split evenly among them. A page that is stored anew is not in the cache. Left out: associativity, lines smaller
than a page, prefetch.

The device's own state, kept where the accesses are: asking it would cost a message an access.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from privmem.scheduler.abi import MAX_NUMNODES

if TYPE_CHECKING:
    from privmem.nodeagent.host.memory import NodeSpec


class BlockCaches:
    """The caches of all nodes of a host, packed for the access loop."""

    def __init__(self, specs: Iterable[NodeSpec]) -> None:
        #: Node -> first line, lines (0: no cache), ns that a miss adds.
        self.place = np.zeros((MAX_NUMNODES, 3), dtype=np.int64)
        total = 0
        for spec in specs:
            self.place[spec.nid] = (total, spec.cache_pages, spec.decompress_ns if spec.cache_pages else 0)
            total += spec.cache_pages
        #: Line -> frame whose block it holds, or -1.
        self.tags = np.full(total, -1, dtype=np.int32)
        #: Node -> hits, misses.
        self.looked = np.zeros((MAX_NUMNODES, 2), dtype=np.int64)

    def forget(self, nid: int, pfns: np.ndarray) -> None:
        """These pages of a node were stored anew."""
        first, lines, _ = self.place[nid].tolist()
        if lines:
            at = first + pfns % lines
            self.tags[at[self.tags[at] == pfns]] = -1

    def snapshot(self) -> dict[str, Any]:
        return {"tags": self.tags.copy(), "looked": self.looked.copy()}

    def restore(self, snapshot: dict[str, Any]) -> None:
        self.tags[:] = snapshot["tags"]
        self.looked[:] = snapshot["looked"]
