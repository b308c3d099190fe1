"""The balloon: frames of a compressed node that nobody may use, because the device could not store their
content.

F3 takes whole pageblocks as contiguous ranges, four at most in a chunk: free ones first, then those with
fewest occupants, which are moved politely (to free frames of the node while its gate is open, else to general
memory, never with reclaim). While the node is withdrawn, occupants that cannot move are reclaimed. F1 takes
single free frames, 512 in a round; while `converge_block` is set it reclaims pages of the node when none are
free, and after three rounds without progress a process is killed. The no-allocation mark never stops the
balloon. Taken frames are trimmed (trim.py), count no longer as memory of the node, and move to another frame
of the node when something else wants theirs. A node that is no multiple of a pageblock ends in a smaller
block.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

import numpy as np

from privmem.nodeagent.host import contig
from privmem.nodeagent.host.blocks import free_unused_block, mark_block
from privmem.nodeagent.host.cram.gate import apply_gate
from privmem.nodeagent.host.cram.service import CramNode, Generation
from privmem.nodeagent.host.cram.trim import trim
from privmem.nodeagent.host.layout import PG_ALLOCATED, PG_HELD, PG_LRU, PG_UNEVICTABLE
from privmem.nodeagent.host.memory import Memory, Node
from privmem.nodeagent.host.page_alloc import AllocContext
from privmem.nodeagent.host.shrink import DIRECT, ScanControl, shrink_pages
from privmem.nodeagent.host.wake import wake_kswapd
from privmem.scheduler.abi import PAGEBLOCK_ORDER, Reason
from privmem.scheduler.zonelist import AllocRequest

#: Frames that are taken at once, and the chunk that a round of F3 takes at most.
BATCH_PAGES = 1 << PAGEBLOCK_ORDER
CHUNK_PAGES = 2048
#: Rounds without progress before somebody is killed (F1).
STALLED_ROUNDS_MAX = 3

_OWNER = "cram balloon"

Kill = Callable[[int], bool]


def converge(memory: Memory, cram: CramNode, kill: Kill | None = None) -> int:
    """The worker: rounds until the balloon has its size or nothing helps. How many rounds. `kill`: lets
    somebody with pages on a node die, false when there is nobody.
    """
    rounds = 0
    stalled_before = cram.stalled_rounds
    while not settled(memory, cram):
        rounds += 1
        gained = converge_round(memory, cram, kill)
        if not gained and (cram.stalled_rounds > STALLED_ROUNDS_MAX or not _insists(memory, cram)):
            break
    finish(memory, cram)
    if not settled(memory, cram) and not _insists(memory, cram):
        cram.stalled_rounds = stalled_before
    return rounds


def finish(memory: Memory, cram: CramNode) -> None:
    """Rounds are over for now: a balloon that has its size keeps nothing out."""
    if settled(memory, cram):
        cram.stalled_rounds = 0
        cram.gate.converge_block = False
        apply_gate(memory, cram)


def settled(memory: Memory, cram: CramNode) -> bool:
    """Whether the balloon has its size: F3 counts in blocks, and never holds too little."""
    over = memory.nodes[cram.nid].balloon_pages - cram.target_pages
    if memory.cram.generation is Generation.F3:
        return over >= 0 and (not cram.balloon or over < min(n for _, n in cram.balloon))
    return over == 0


def converge_round(memory: Memory, cram: CramNode, kill: Kill | None = None) -> int:
    """One round: frames that the balloon gained or gave back."""
    node = memory.nodes[cram.nid]
    if cram.balloon_pages > cram.target_pages and not settled(memory, cram):
        return _deflate(memory, node, cram, cram.balloon_pages - cram.target_pages)
    if memory.cram.generation is Generation.F3:
        gained = _take_blocks(memory, node, cram)
    else:
        gained = _take_free(memory, node, cram)
        if not gained and cram.gate.converge_block and _reclaim(memory, node):
            gained = _take_free(memory, node, cram)
    cram.stalled_rounds = 0 if gained else cram.stalled_rounds + 1
    if not gained and cram.gate.converge_block and cram.stalled_rounds >= STALLED_ROUNDS_MAX:
        killed = kill is not None and kill(cram.nid)
        memory.vmstat.add("cram_oom", int(killed))
        gained = _take_free(memory, node, cram) if killed else 0
        cram.stalled_rounds = 0 if gained else cram.stalled_rounds
        if not killed:
            cram.stalled_rounds = STALLED_ROUNDS_MAX + 1
    return gained


def _insists(memory: Memory, cram: CramNode) -> bool:
    """Whether rounds without progress are worth another one."""
    return cram.gate.converge_block and memory.cram.generation is not Generation.F3


def _keep(memory: Memory, node: Node, cram: CramNode, first: int, nr_pages: int) -> None:
    """`adjust_managed_page_count` of frames that the balloon has now."""
    cram.balloon.append((first, nr_pages))
    node.balloon_pages += nr_pages
    memory.vmstat.add("balloon_inflate", nr_pages)
    memory.vmstat.add("nr_balloon_pages", nr_pages)


def _let_go(memory: Memory, node: Node, first: int, nr_pages: int) -> None:
    """Frames of the balloon are memory again."""
    free_unused_block(memory, first, nr_pages)
    _count_out(memory, node, nr_pages)


def _count_out(memory: Memory, node: Node, nr_pages: int) -> None:
    node.balloon_pages -= nr_pages
    memory.vmstat.add("balloon_deflate", nr_pages)
    memory.vmstat.add("nr_balloon_pages", -nr_pages)


def _deflate(memory: Memory, node: Node, cram: CramNode, nr_pages: int) -> int:
    """Give back the last frames taken: whole blocks in F3, and never more than asked."""
    whole = memory.cram.generation is Generation.F3
    given = 0
    for at in range(len(cram.balloon) - 1, -1, -1):
        first, size = cram.balloon[at]
        part = min(size, nr_pages - given)
        if not part or (whole and part < size):
            continue
        _cut(cram, at, first + size - part, part)
        _let_go(memory, node, first + size - part, part)
        given += part
    memory.setup_watermarks()
    return given


# -- F1: single free frames


def _take_free(memory: Memory, node: Node, cram: CramNode) -> int:
    """A batch of free frames, above the min watermark."""
    wanted = min(BATCH_PAGES, cram.target_pages - cram.balloon_pages)
    nr_pages = max(0, min(wanted, node.free_pages - node.wmark.min_pages))
    if nr_pages < wanted:
        wake_kswapd(memory, node)
    if not nr_pages:
        return 0
    context = AllocContext((node.nid,), Reason.OWNER, may_reclaim=False)
    taken = np.sort(node.buddy.alloc_bulk(nr_pages))
    breaks = np.flatnonzero(np.diff(taken) != 1) + 1
    for run in np.split(taken, breaks):
        first = int(run[0])
        mark_block(memory, context, first, len(run), PG_HELD)
        _keep(memory, node, cram, first, len(run))
    memory.setup_watermarks()
    trim(cram, nr_pages, memory.cram.generation)
    return nr_pages


def _reclaim(memory: Memory, node: Node) -> int:
    """The reclaim rung: pages of the node go to swap."""
    from privmem.nodeagent.host import reclaim  # which may place pages here

    freed = 0
    for _ in range(BATCH_PAGES):
        taken, looked, cost_ns = reclaim.shrink_node(memory, node, DIRECT)
        memory.charge_ns += cost_ns
        freed += taken
        if not looked or freed >= BATCH_PAGES:
            break
    return freed


# -- F3: pageblocks


def _take_blocks(memory: Memory, node: Node, cram: CramNode) -> int:
    """A chunk of blocks, politely; while withdrawn, by reclaim where that fails."""
    chunk = 0
    for first, nr_pages in _blocks(memory, node, cram):
        if chunk >= CHUNK_PAGES or cram.balloon_pages >= cram.target_pages:
            break
        if _take_block(memory, node, cram, first, nr_pages):
            _keep(memory, node, cram, first, nr_pages)
            chunk += nr_pages
    if chunk:
        memory.setup_watermarks()
        trim(cram, chunk, memory.cram.generation)
    return chunk


def _blocks(memory: Memory, node: Node, cram: CramNode) -> list[tuple[int, int]]:
    """Blocks of the node that could be taken: (first frame, pages), those with fewest occupants first."""
    found = []
    for start, nr_pages in cram.ranges:
        at, end = node.start_pfn + start, node.start_pfn + start + nr_pages
        while at < end:
            size = min(BATCH_PAGES - at % BATCH_PAGES, end - at)
            flags = memory.frames.flags[at : at + size]
            used = int(np.count_nonzero(flags & np.uint16(PG_ALLOCATED)))
            if not np.any(flags & np.uint16(PG_HELD)):
                found.append((used, at, size))
            at += size
    return [(at, size) for _, at, size in sorted(found)]


def _take_block(memory: Memory, node: Node, cram: CramNode, first: int, nr_pages: int) -> bool:
    if not _contig(memory, node, cram, first, nr_pages):
        return True
    if not cram.gate.closed or not _reclaim_block(memory, first, nr_pages):
        return False
    return not _contig(memory, node, cram, first, nr_pages)


def _contig(memory: Memory, node: Node, cram: CramNode, first: int, nr_pages: int) -> int:
    """`alloc_contig_range` with the private flag: 0 or a negative errno. The range is the balloon's own
    affair.
    """
    resolution = memory.resolver.resolve(AllocRequest(node.nid, None, Reason.CONTIG), None)
    zones = resolution.zones if cram.gate.closed else (node.nid, *resolution.zones)
    displaced = AllocContext(
        zones, Reason.CONTIG, uninvited=resolution.uninvited, cpu_nid=node.nid, may_reclaim=False
    )
    error = contig.alloc_contig_range(memory, first, nr_pages, _OWNER, private=True, displaced=displaced)
    if not error:
        del memory.high_order.ranges[first]
    return error


def _reclaim_block(memory: Memory, first: int, nr_pages: int) -> int:
    """The reclaim rung: occupants of a block go to swap. How many went."""
    frames = memory.frames
    memory.lru_batches.drain_all()
    victims = []
    for pfn in range(first, first + nr_pages):
        flags = int(frames.flags[pfn])
        if flags & PG_LRU and not flags & PG_UNEVICTABLE:
            memory.lru_del(pfn)
            victims.append(pfn)
    sc = ScanControl(who="")
    freed = shrink_pages(memory, victims, sc) if memory.swap.nr_pages else 0
    if not memory.swap.nr_pages:
        for pfn in victims:
            memory.lru_add(pfn)
    memory.charge_ns += sc.cost_ns
    memory.vmstat.add("pgcontig_reclaim", freed)
    return freed


# -- frames of the balloon move


def migrate_page(memory: Memory, pfn: int, target_nid: int, locked: bool = False) -> int:
    """`balloon_page_migrate` of one frame: 0 when another frame of the node stands for it; -EAGAIN while the
    page is locked; -ENOENT when it should leave the node: then the balloon is smaller by one; -EINVAL for any
    other frame.
    """
    cram = memory.cram.nodes.get(memory.frames.nid_of(pfn))
    at = _position(cram, pfn) if cram is not None else -1
    if cram is None or at < 0:
        return -errno.EINVAL
    if locked:
        return -errno.EAGAIN
    node = memory.nodes[cram.nid]
    off_node = target_nid != node.nid
    if not off_node and not node.free_pages:
        return -errno.ENOMEM
    _cut(cram, at, pfn, 1)
    if off_node:
        _let_go(memory, node, pfn, 1)
        cram.target_pages = max(0, cram.target_pages - 1)
        memory.setup_watermarks()
        return -errno.ENOENT
    new = node.buddy.alloc(0)
    mark_block(memory, AllocContext((node.nid,), Reason.CONTIG), new, 1, PG_HELD)
    cram.balloon.append((new, 1))
    free_unused_block(memory, pfn, 1)
    memory.vmstat.add("balloon_migrate")
    return 0


def holds(memory: Memory, nid: int, first: int, nr_pages: int) -> np.ndarray:
    """Which frames of [first, first + nr_pages) are the balloon's."""
    mine = np.zeros(nr_pages, dtype=bool)
    cram = memory.cram.nodes.get(nid)
    for start, size in [] if cram is None else cram.balloon:
        mine[max(0, start - first) : max(0, start + size - first)] = True
    return mine


def leave_range(memory: Memory, nid: int, first: int, nr_pages: int) -> int:
    """Memory goes offline: frames of the balloon in [first, first + nr_pages) are free again, and the balloon and
    its target are smaller by as many. How many.
    """
    cram = memory.cram.nodes.get(nid)
    if cram is None:
        return 0
    left = 0
    for start, size in list(cram.balloon):
        low, high = max(start, first), min(start + size, first + nr_pages)
        if low < high:
            _cut(cram, _position(cram, low), low, high - low)
            _let_go(memory, memory.nodes[nid], low, high - low)
            left += high - low
    cram.target_pages = max(0, cram.target_pages - left)
    return left


def _position(cram: CramNode, pfn: int) -> int:
    return next((at for at, (first, n) in enumerate(cram.balloon) if first <= pfn < first + n), -1)


def _cut(cram: CramNode, at: int, pfn: int, nr_pages: int) -> None:
    """Take frames out of the run at a position."""
    first, size = cram.balloon[at]
    parts = [(first, pfn - first), (pfn + nr_pages, first + size - pfn - nr_pages)]
    cram.balloon[at : at + 1] = [part for part in parts if part[1] > 0]
