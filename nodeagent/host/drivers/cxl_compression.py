"""The driver of a CXL device that compresses (RFC v4): probe, the two thresholds, flushing, removal.

Follows the v4 compression driver. A region must have RAM and an alignment unit of it; its memory goes online in the
movable zone and is registered with the service. Interrupt vector 12 (low threshold) means full pressure, 13 (high
threshold) none. Pages that are freed wait in buffers of a CPU, with (payload - 8) / 16 entries each, for a media
operation that zeroes them on the device; when all three buffers are full a page is zeroed by the host at once. An
operation that fails is tried for 30 s, then the host zeroes. Removal tries to take the memory offline once a
second, 60 times; pages that are freed meanwhile are zeroed at once. State is the service's (`CramNode`), so that it
goes with its snapshots. Left out: mailbox and interrupts themselves; all CPUs share one set of buffers.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import numpy as np

from privmem.nodeagent.host.cram import pressure, registration
from privmem.nodeagent.host.cram.gate import apply_gate
from privmem.nodeagent.host.cram.service import PRESSURE_FULL, CramNode
from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.page_alloc import release_frames

if TYPE_CHECKING:
    from privmem.nodeagent.host.kernel import Kernel

VECTOR_LOW_THRESHOLD = 12
VECTOR_HIGH_THRESHOLD = 13
#: Least size of a region: a memory block of large machines.
ALIGNMENT_BYTES = 256 << 20
#: Bytes of a media operation's request, before its entries, and of each.
_HEADER_BYTES, _ENTRY_BYTES = 8, 16
#: How long a media operation that fails is tried, and how often removal tries.
MEDIA_TIMEOUT_S = 30
OFFLINE_TRIES = 60


def buffer_entries(payload_bytes: int) -> int:
    """Pages that a media operation can name."""
    return max(1, (payload_bytes - _HEADER_BYTES) // _ENTRY_BYTES)


def probe(
    kernel: Kernel, nid: int, region_bytes: int | None = None, has_ram: bool = True, payload_bytes: int = 4096
) -> int:
    """0 or a negative errno. A region of no stated size is as large as its node, whatever that is."""
    if not has_ram:
        return -errno.ENODEV
    if region_bytes is not None and region_bytes < ALIGNMENT_BYTES:
        return -errno.ENOSPC
    service, owner = kernel.memory.cram, f"cxl{nid}"
    if not service.owns(nid):
        features = registration.usual_features(service.generation)
        ranges = [(0, kernel.boot[nid].pages)]
        error = registration.cram_register(kernel.hotplug, nid, ranges, features, owner)
        kernel.memory_changed()
        if error:
            return error
    cram = service.nodes[nid]
    cram.buffer_entries = buffer_entries(payload_bytes)
    cram.gate.migration_blocked = False  # as a removal that failed may have left it
    apply_gate(kernel.memory, cram)
    return 0


def interrupt(memory: Memory, nid: int, vector: int) -> int:
    """0, -EINVAL for another vector, -ENODEV."""
    if vector not in (VECTOR_LOW_THRESHOLD, VECTOR_HIGH_THRESHOLD):
        return -errno.EINVAL
    return pressure.set_pressure(memory, nid, PRESSURE_FULL if vector == VECTOR_LOW_THRESHOLD else 0)


def poll(memory: Memory, cram: CramNode, seconds: int = 0) -> int:
    """The flush worker: pages that wait go to the buddy when the device zeroed them, or the host did at last. How
    many.
    """
    if not cram.deferred:
        return 0
    if cram.media_fails:
        cram.media_failing_s += seconds
        if cram.media_failing_s < MEDIA_TIMEOUT_S:
            return 0
        cram.zeroed_pages += len(cram.deferred)
    else:
        cram.trimmed_pages += len(cram.deferred)
    return release_deferred(memory, cram)


def release_deferred(memory: Memory, cram: CramNode) -> int:
    """The driver drops its references to pages that it kept. How many."""
    pfns, cram.deferred, cram.media_failing_s = cram.deferred, [], 0
    if pfns:
        release_frames(memory, memory.nodes[cram.nid], np.array(pfns, dtype=np.int32))
    return len(pfns)


def remove(kernel: Kernel, nid: int, tries: int = OFFLINE_TRIES) -> int:
    """Take the device away: at which try its memory went, -ENODEV, or -EBUSY when it never did. Nothing comes onto
    the node meanwhile, nor after a failure.
    """
    memory = kernel.memory
    cram = memory.cram.nodes.get(nid)
    if cram is None:
        return -errno.ENODEV
    cram.gate.migration_blocked = True
    apply_gate(memory, cram)
    for at in range(1, tries + 1):
        cram.offline_tries += 1
        poll(memory, cram, seconds=1)
        if not kernel.hotplug.remove(nid):
            del memory.cram.nodes[nid]
            memory.nodes[nid].no_alloc_owner = ""
            kernel.memory_changed()
            return at
    return -errno.EBUSY
