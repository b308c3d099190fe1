"""Giving memory of a pool back: residents move out, and what cannot move is lost only when the pool takes by force.

Models what a driver of a dynamic capacity device does with a release request of CXL 3.0 (`offline_pages` of an
extent, mm/memory_hotplug.c, Linux 6.1): residents go to ordinary nodes nearest first, then into other extents of
the same node; an extent with a resident left stays. When the removal is forced, the extent goes in any case. Pages
that were left on it are lost, each one is reported, and whoever maps one is killed, as by SIGBUS with
`vm.memory_failure_early_kill` = 1. Left out: the CPU time of the moves (their traffic counts), deadlines.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from privmem.nodeagent.host.fault import unmap_range
from privmem.nodeagent.host.layout import PG_ALLOCATED, PG_LRU, PTE_PFN_SHIFT, PTE_PRESENT
from privmem.nodeagent.host.memory import Memory, Node
from privmem.nodeagent.host.migrate import move_to_frames, room_pages
from privmem.nodeagent.host.program import Program
from privmem.scheduler.abi import Reason


@dataclass(slots=True)
class Returned:
    """What came of one request to give back."""

    #: (first page, pages) on the device, in the order in which they went.
    extents: list[tuple[int, int]] = field(default_factory=list)
    #: One row a page that was lost, see `_lost_row`.
    lost: list[list[Any]] = field(default_factory=list)

    @property
    def nr_pages(self) -> int:
        return sum(pages for _, pages in self.extents)


def give_back(
    memory: Memory, node: Node, nr_pages: int, programs: list[Program], *, forced: bool
) -> Returned:
    """Give back at least `nr_pages` in whole extents, or what there is: those with the fewest residents first; by
    force, those granted last.
    """
    result = Returned()
    order = list(reversed(node.extents))
    if not forced:
        order.sort(key=lambda extent: _nr_residents(memory, node, *extent))
    memory.lru_batches.drain_all()
    for start, pages in order:
        if result.nr_pages >= nr_pages:
            break
        _move_out(memory, node, start, pages, forced=forced)
        if forced:
            result.lost += _lose(memory, node, start, pages, programs)
        if memory.offline(node, start, pages):
            result.extents.append((start, pages))
    if result.extents:
        memory.setup_watermarks()
        memory.vmstat.add("extents_released", len(result.extents))
    memory.vmstat.add("extents_taken", len(result.extents) if forced else 0)
    memory.vmstat.add("extent_pages_lost", len(result.lost))
    return result


def _frames(node: Node, start: int, nr_pages: int) -> np.ndarray:
    first = node.start_pfn + start
    return np.arange(first, first + nr_pages, dtype=np.int32)


def _residents(memory: Memory, node: Node, start: int, nr_pages: int) -> np.ndarray:
    pfns = _frames(node, start, nr_pages)
    return pfns[memory.frames.flags[pfns] & PG_ALLOCATED != 0]


def _nr_residents(memory: Memory, node: Node, start: int, nr_pages: int) -> int:
    return len(_residents(memory, node, start, nr_pages))


def _move_out(memory: Memory, node: Node, start: int, nr_pages: int, *, forced: bool) -> None:
    """Move residents out of one extent, as many as there is room for; by force, down to the min watermarks."""
    residents = _residents(memory, node, start, nr_pages)
    left = residents[memory.frames.flags[residents] & PG_LRU != 0]
    if not forced and (len(left) < len(residents) or len(left) > _all_room(memory, node, start, nr_pages)):
        return  # it could not be emptied, so nothing moves
    for target in _targets(memory, node):
        room = _room(target, forced=forced)
        here, left = left[:room], left[room:]
        if len(here):
            _move(memory, here, target, Reason.HOTPLUG)
    if len(left):
        _move_within(memory, node, start, nr_pages, left)


def _targets(memory: Memory, node: Node) -> list[Node]:
    """Ordinary nodes, those nearest to the pooled one first."""
    topology = memory.topology
    public = [n for n in memory.nodes.values() if n is not node and not n.private and not n.no_alloc_owner]
    return sorted(public, key=lambda n: (topology.distance(node.nid, n.nid), n.nid))


def _room(target: Node, *, forced: bool) -> int:
    above = 0 if forced else target.wmark.high_pages - target.wmark.min_pages
    return max(0, room_pages(target) - above)


def _all_room(memory: Memory, node: Node, start: int, nr_pages: int) -> int:
    """How many residents of an extent could go anywhere without need."""
    room = sum(_room(target, forced=False) for target in _targets(memory, node))
    here = node.free_pages - node.buddy.count_free(node.start_pfn + start, nr_pages)
    return room + (min(here, node.store_room_pages) if node.spec.stores else here)


def _move(memory: Memory, pfns: np.ndarray, target: Node, reason: Reason) -> np.ndarray:
    for pfn in pfns.tolist():
        memory.lru_del(pfn)
    new = target.buddy.alloc_bulk(len(pfns))
    memory.vmstat.add("pgalloc", len(pfns))
    if memory.story is not None:
        memory.story.acts("the pool's driver")
    move_to_frames(memory, pfns, new, reason)
    return new


def _move_within(memory: Memory, node: Node, start: int, nr_pages: int, pfns: np.ndarray) -> None:
    """Move residents into other extents of the same node; their reason stays, as they are still wanted there."""
    frames = _frames(node, start, nr_pages)
    free = frames[memory.frames.flags[frames] & PG_ALLOCATED == 0]
    runs = np.split(free, np.flatnonzero(np.diff(free) != 1) + 1) if len(free) else []
    taken = [(int(run[0]), len(run)) for run in runs if node.buddy.remove_range(int(run[0]), len(run))]
    room = node.free_pages
    if node.spec.stores:
        room = max(0, min(room, node.store_room_pages))
    here = pfns[:room]
    if len(here):
        reasons = memory.frames.reason[here].copy()
        new = _move(memory, here, node, Reason.OWNER)
        memory.frames.reason[new] = reasons
    for first, nr in taken:
        node.buddy.add_range(first, nr)


def _lose(memory: Memory, node: Node, start: int, nr_pages: int, programs: list[Program]) -> list[list[Any]]:
    """Report what is still on the extent, and kill those who map any of it; their other memory is free as well."""
    doomed = _residents(memory, node, start, nr_pages)
    if not len(doomed):
        return []
    rows: list[list[Any]] = []
    for program in programs:
        mapped = _mapped_by(memory, program, doomed)
        if not len(mapped):
            continue
        rows += [_lost_row(memory, node, program, slot) for slot in mapped.tolist()]
        for vma in program.task.mm.vmas:
            unmap_range(memory, vma)
        program.release(memory)
        program.ended = program.killed = True
        memory.vmstat.add("extent_kill")
    return sorted(rows)


def _mapped_by(memory: Memory, program: Program, pfns: np.ndarray) -> np.ndarray:
    """Slots of a program's page table that map one of these frames."""
    found: list[np.ndarray] = []
    for vma in program.task.mm.vmas:
        entries = memory.page_table.pte[vma.slot : vma.slot + vma.nr_pages]
        there = (entries & np.uint32(PTE_PRESENT) != 0) & np.isin(entries >> PTE_PFN_SHIFT, pfns)
        found.append(vma.slot + np.flatnonzero(there))
    return np.concatenate(found) if found else np.empty(0, dtype=np.int64)


def _lost_row(memory: Memory, node: Node, program: Program, slot: int) -> list[Any]:
    """[time_ns, node, page on the device, process, page of the process, version of its content]."""
    pfn = int(memory.page_table.pte[slot]) >> PTE_PFN_SHIFT
    version = int(memory.frames.version[pfn])
    return [memory.now_ns, node.nid, pfn - node.start_pfn, program.spec.name, slot - program.slot, version]
