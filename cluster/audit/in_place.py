"""More rows of the audit: services that work on pages where they are, swap, pools of contiguous memory, OOM.

Left out: swap areas of several priorities, a CMA pool of a driver's own device (it is the owner's business).
"""

from __future__ import annotations

import errno

from privmem.cluster.audit.activities import (
    SWAP_PAGES,
    TRIED_PAGES,
    USER,
    Activity,
    wished,
)
from privmem.cluster.audit.machine import RESIDENT_PAGES, Scene
from privmem.nodeagent.host import contig, oom, swap
from privmem.nodeagent.host.process import Process
from privmem.scheduler.abi import PAGE_SIZE, Feature, Mpol

MADV_COLD, MADV_PAGEOUT = 20, 21
#: Pages of a contiguous pool of an administrator.
POOL_PAGES = 64


def _note(notes: list[str], failure: OSError) -> None:
    notes.append(errno.errorcode.get(failure.errno or 0, str(failure)))


def _mlock(scene: Scene, notes: list[str]) -> None:
    for process, addr in _tenants(scene):
        try:
            process.mlock(addr, RESIDENT_PAGES * PAGE_SIZE)
            notes.append("ok")
        except OSError as failure:
            _note(notes, failure)


def _tenants(scene: Scene) -> list[tuple[Process, int]]:
    """Processes with anonymous memory that each node's driver moved onto it, used just now."""
    areas = [scene.moved_in(nid, RESIDENT_PAGES) for nid in scene.private]
    for process, addr in areas:
        process.touch(addr, RESIDENT_PAGES * PAGE_SIZE, write=False)
    scene.begin()
    return areas


def _cold(scene: Scene, notes: list[str]) -> None:
    for process, addr in _tenants(scene):
        try:
            process.madvise(addr, RESIDENT_PAGES * PAGE_SIZE, MADV_COLD)
            notes.append("ok")
        except OSError as failure:
            _note(notes, failure)


def _round_trip(scene: Scene, notes: list[str]) -> None:
    """Memory of each node's tenants goes to swap where it may, and is wanted again: pages without a policy of
    their own come back to general memory.
    """
    swap.swapon(scene.kernel.memory, SWAP_PAGES)
    for process, addr in _tenants(scene):
        try:
            process.madvise(addr, RESIDENT_PAGES * PAGE_SIZE, MADV_PAGEOUT)
        except OSError as failure:
            _note(notes, failure)
        process.touch(addr, RESIDENT_PAGES * PAGE_SIZE, write=False)


def _readahead(scene: Scene, notes: list[str]) -> None:
    """Shared memory of two users lies side by side on swap. One of them binds his to each private node, and wants
    it: readahead brings his neighbour's pages with the policy of the one who faulted.
    """
    memory = scene.kernel.memory
    swap.swapon(memory, SWAP_PAGES, page_cluster=3)
    for nid in scene.private:
        bound, other = scene.user(), scene.user()
        mine = bound.mmap(TRIED_PAGES * PAGE_SIZE, shared=True)
        theirs = other.mmap(TRIED_PAGES * PAGE_SIZE, shared=True)
        for at in range(0, TRIED_PAGES * PAGE_SIZE, PAGE_SIZE):
            for process, addr in ((bound, mine), (other, theirs)):
                process.touch(addr + at, PAGE_SIZE)
                memory.lru_batches.drain_all()
                process.madvise(addr + at, PAGE_SIZE, MADV_PAGEOUT)
        try:
            bound.mbind(mine, TRIED_PAGES * PAGE_SIZE, Mpol.BIND, [nid])
        except OSError as failure:
            _note(notes, failure)
        bound.touch(mine, TRIED_PAGES * PAGE_SIZE, write=False)
        swapped = sum(node is None for node in other.where(theirs, TRIED_PAGES * PAGE_SIZE))
        notes.append(f"{swapped} of a neighbour's pages not mapped")


def _mapped(scene: Scene) -> set[int]:
    """Frames that a page table maps: none of a neighbour, who has not touched what was read for him."""
    frames = scene.kernel.memory.frames
    return {pfn for used in scene.frames().values() for pfn in used if frames.rmap[pfn]}


def _cma_pool(scene: Scene, notes: list[str]) -> None:
    """A pool reserved on each private node by the command line, and a part of it taken by some device."""
    memory = scene.kernel.memory
    for nid in scene.private:
        error = contig.reserve_cma(memory, f"pool{nid}", nid, POOL_PAGES, dma=False)
        if error:
            notes.append(errno.errorcode[-error])
            continue
        got = contig.cma_alloc(memory, memory.high_order.cma[-1], TRIED_PAGES, "stranger")
        notes.append("taken" if got >= 0 else errno.errorcode[-got])


def _oom(scene: Scene, notes: list[str]) -> None:
    """How many pages of each private node the OOM killer counts as memory that killing somebody could free."""
    memory = scene.kernel.memory
    for nid in scene.private:
        control = oom.OomControl(oom.Constraint.MEMORY_POLICY, 1 << nid)
        scene.reckoned[nid] = oom.total_pages(memory, control)
        notes.append(f"node {nid}: {scene.reckoned[nid]} pages counted")


def _counts(scene: Scene) -> set[int]:
    """Nodes whose driver wished for both, so that killing a user of general memory makes room by demotion."""
    both = Feature.RECLAIM | Feature.DEMOTION
    return {nid for nid, node in scene.private.items() if node.wish & both == both}


IN_PLACE: tuple[Activity, ...] = (
    Activity("mlock", "no design's thread gates it but v4", _mlock, wished(Feature.RECLAIM, *USER)),
    Activity("MADV_COLD", "only with RECLAIM", _cold, wished(Feature.RECLAIM)),
    Activity("swap round trip", "out only with RECLAIM", _round_trip, wished(Feature.RECLAIM)),
    Activity("swap readahead under a bind", "lands by the faulting policy", _readahead, own=_mapped),
    Activity("pool of contiguous memory on P", "allowed: the pool has a policy of its own", _cma_pool),
    Activity("OOM killer's account of P", "counted where reclaim and demotion may use it", _oom, _counts),
)
