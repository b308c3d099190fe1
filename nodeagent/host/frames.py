"""The frame table (`mem_map`): what a host knows of each of its page frames, in packed arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from privmem.nodeagent.host.layout import FRAMES_MAX, NIL
from privmem.scheduler.abi import SECTION_PAGES, SECTION_SHIFT
from privmem.scheduler.errors import InvariantError


class FrameTable:
    """Arrays over all page frame numbers of one host; the index is the pfn.

    Every node owns whole sections of 2**15 frames, so `node_of_section` answers `pfn_to_nid`. Arrays start as
    zero pages of the machine we run on: frames that were never used cost nothing.

    next_, prev     int32   links of the one list the frame is on: a buddy free list (heads only) or an LRU
    list
    block_order     int8    order of the free block that starts here, -1 elsewhere (buddy)
    flags           uint16  PG_* bits
    rmap            int32   first slot that maps the frame, 0 for none; `PageTable.rmap_next` chains the
    others
    version         uint16  version of the content (see `nodeagent/content.py`)
    scan_ms         uint16  when NUMA balancing last took the access right, in ms modulo 2**16
    reason          uint8   abi.Reason of the allocation
    origin_nid      uint8   node on which the page was first allocated, before any migration
    owner           uint16  id of the process that asked for it
    object_id       int32   with PG_OBJECT: the object, and
    object_index    int32   the page's index in it
    """

    ARRAYS = (
        ("next_", np.int32),
        ("prev", np.int32),
        ("block_order", np.int8),
        ("flags", np.uint16),
        ("rmap", np.int32),
        ("version", np.uint16),
        ("scan_ms", np.uint16),
        ("reason", np.uint8),
        ("origin_nid", np.uint8),
        ("owner", np.uint16),
        ("object_id", np.int32),
        ("object_index", np.int32),
    )

    next_: np.ndarray
    prev: np.ndarray
    block_order: np.ndarray
    flags: np.ndarray
    rmap: np.ndarray
    version: np.ndarray
    scan_ms: np.ndarray
    reason: np.ndarray
    origin_nid: np.ndarray
    owner: np.ndarray
    object_id: np.ndarray
    object_index: np.ndarray

    def __init__(self, span_pages: dict[int, int]) -> None:
        """`span_pages`: node id -> most frames that the node can ever have. Nodes are laid out in id order."""
        self.start_pfn: dict[int, int] = {}
        self.span_pages = dict(span_pages)
        pfn = 0
        owners: list[int] = []
        for nid in sorted(span_pages):
            sections = -(-span_pages[nid] // SECTION_PAGES)
            self.start_pfn[nid] = pfn
            owners += [nid] * sections
            pfn += sections * SECTION_PAGES
        if pfn > FRAMES_MAX:
            raise InvariantError(f"{pfn} frames do not fit into a page-table entry's {FRAMES_MAX}")
        self.nr_frames = pfn
        self.node_of_section = np.array(owners, dtype=np.int64)
        for name, dtype in self.ARRAYS:
            setattr(self, name, np.zeros(pfn, dtype=dtype))
        self.block_order[:] = NIL

    def nid_of(self, pfn: int) -> int:
        """`pfn_to_nid`."""
        return int(self.node_of_section[pfn >> SECTION_SHIFT])

    def snapshot(self) -> dict[str, Any]:
        """All arrays."""
        return {name: getattr(self, name).copy() for name, _ in self.ARRAYS}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Copies into the existing arrays: others hold views of them."""
        for name, _ in self.ARRAYS:
            getattr(self, name)[:] = snapshot[name]
