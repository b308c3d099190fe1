"""The service's own thread: balloons get their size, hot pages move up; and its files in debugfs.

Models the workers of F1 and F3 and the debug view: a line for each node, verbs to be written (inflate,
deflate, block, unblock, demote, noalloc, allow), `promote_count` and `promote_fail`. Where the balloon takes
free pages (F1) the node's kswapd may have been woken by it, and works before the next round.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from privmem.nodeagent.host.cram import balloon, capacity, gate, hot_ring, placement
from privmem.nodeagent.host.cram.service import Generation
from privmem.nodeagent.host.drivers import cxl_compression
from privmem.nodeagent.host.layout import PG_LRU
from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.reclaim import run_kswapd

if TYPE_CHECKING:
    from privmem.nodeagent.host.kernel import Kernel

_LONG_NS = 1 << 62
_COLUMNS = "node nominal current perceived balloon target blocked allowed free present"


def run(memory: Memory, kill: balloon.Kill | None = None) -> None:
    """Let the worker come to rest."""
    for cram in list(memory.cram.nodes.values()):
        node = memory.nodes[cram.nid]
        if not node.managed_pages:
            continue
        if memory.cram.generation is Generation.V4:
            if cram.buffer_entries:
                cxl_compression.poll(memory, cram)
            continue
        before = -1
        while before != cram.balloon_pages:
            before = cram.balloon_pages
            balloon.converge(memory, cram, kill)
            if balloon.settled(memory, cram) or not node.kswapd_awake:
                break
            run_kswapd(memory, node, _LONG_NS)
    hot_ring.promote_hot(memory)


class CramFiles:
    """/sys/kernel/debug/cram."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def nodes(self) -> str:
        """A line for each node."""
        memory = self.kernel.memory
        lines = [_COLUMNS]
        for cram in memory.cram.nodes.values():
            node = memory.nodes[cram.nid]
            numbers = (
                cram.nid,
                cram.nominal_ratio,
                cram.real_ratio,
                cram.total_pages,
                cram.balloon_pages,
                cram.target_pages,
                int(bool(node.no_alloc_owner)),
                int(cram.gate.alloc_allowed),
                node.free_pages,
                node.managed_pages,
            )
            lines.append(" ".join(map(str, numbers)))
        return "\n".join(lines)

    def promote_count(self) -> str:
        return str(self.kernel.memory.cram.promote_count)

    def promote_fail(self) -> str:
        return str(self.kernel.memory.cram.promote_fail)

    def command(self, text: str) -> int:
        """`inflate NODE PAGES`, `deflate NODE PAGES`, `block NODE`, `unblock NODE`, `noalloc NODE`, `allow
        NODE`, `demote NODE PAGES`.
        """
        words = text.split()
        numbers = [int(word) for word in words[1:] if word.isascii() and word.isdecimal()]
        if len(words) < 2 or len(numbers) != len(words) - 1:
            return -errno.EINVAL
        memory, nid = self.kernel.memory, numbers[0]
        if words[0] in ("noalloc", "allow") and len(numbers) == 1:
            return gate.set_no_alloc(memory, nid, words[0] == "noalloc")
        if words[0] in ("block", "unblock") and len(numbers) == 1:
            return gate.set_test_block(memory, nid, words[0] == "block")
        if len(numbers) != 2 or words[0] not in ("inflate", "deflate", "demote"):
            return -errno.EINVAL
        cram = memory.cram.nodes.get(nid)
        if words[0] == "demote":
            return demote_from(memory, nid, numbers[1])
        if cram is None:
            return -errno.ENODEV
        by = numbers[1] if words[0] == "inflate" else -numbers[1]
        return capacity.set_target(memory, nid, max(0, cram.balloon_pages + by))


def demote_from(memory: Memory, nid: int, nr_pages: int) -> int:
    """The debug verb `demote`: cold pages of a general node come into compressed RAM: 0, or -ENODEV."""
    if nid not in memory.nodes or memory.is_cram(nid):
        return -errno.ENODEV
    node = memory.nodes[nid]
    memory.lru_batches.drain_all()
    flags = memory.frames.flags[node.start_pfn : node.start_pfn + node.spec.span_pages]
    victims = [node.start_pfn + at for at, f in enumerate(flags.tolist()) if f & PG_LRU]
    chosen = [pfn for pfn in victims if placement.eligible(memory, pfn)][:nr_pages]
    for pfn in chosen:
        memory.lru_del(pfn)
    stayed, cost_ns = placement.demote(memory, chosen)
    for pfn in stayed:
        memory.lru_add(pfn)
    memory.charge_ns += cost_ns
    return 0


def add_files(kernel: Kernel) -> None:
    """Make the files."""
    files, add = CramFiles(kernel), kernel.sysfs.add
    add("/sys/kernel/debug/cram/nodes", files.nodes)
    add("/sys/kernel/debug/cram/promote_count", files.promote_count)
    add("/sys/kernel/debug/cram/promote_fail", files.promote_fail)
    add("/sys/kernel/debug/cram/control", lambda: "", files.command)
