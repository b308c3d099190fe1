"""What the device can hold now, and how large the balloon must be for it.

F1 has a ratio: of the perceived size, (nominal - real) / nominal is the balloon's; until it has that,
`converge_block` keeps pages out. F3 has a capacity in pages: the balloon gets total - min(capacity, total),
asynchronously; whether pages come in meanwhile is the owner's decision (gate.py). Targets are rounded up: the
device must never be asked to hold more than it said.
"""

from __future__ import annotations

import errno

from privmem.nodeagent.host.cram.gate import apply_gate
from privmem.nodeagent.host.cram.service import RATIO_ONE, CramNode
from privmem.nodeagent.host.memory import Memory


def balloon_for_ratio(perceived_pages: int, nominal: int, real: int) -> int:
    """Pages of the balloon for ratios in thousandths."""
    return -(-perceived_pages * max(0, nominal - real) // nominal)


def set_compression_ratio(memory: Memory, nid: int, real: int) -> int:
    """F1: what the device reaches now: 0, -EINVAL below 1.00, -ENODEV for a node that is not registered."""
    if real < RATIO_ONE:
        return -errno.EINVAL
    cram = memory.cram.nodes.get(nid)
    if cram is None:
        return -errno.ENODEV
    cram.real_ratio = real
    cram.target_pages = balloon_for_ratio(cram.total_pages, cram.nominal_ratio, real)
    cram.gate.converge_block = cram.balloon_pages < cram.target_pages
    cram.stalled_rounds = 0
    apply_gate(memory, cram)
    return 0


def set_capacity(memory: Memory, nid: int, pages: int) -> int:
    """F3, `cram_set_capacity`: 0, or -ENODEV for a node that is not registered. The worker does the rest."""
    cram = memory.cram.nodes.get(nid)
    if cram is None:
        return -errno.ENODEV
    cram.target_pages = cram.total_pages - min(max(0, pages), cram.total_pages)
    cram.stalled_rounds = 0
    return 0


def set_target(memory: Memory, nid: int, pages: int) -> int:
    """`balloon_target`, and the debug verbs: the balloon's size itself."""
    cram = memory.cram.nodes.get(nid)
    if cram is None:
        return -errno.ENODEV
    if pages < 0:
        return -errno.EINVAL
    cram.target_pages = min(pages, cram.total_pages)
    cram.stalled_rounds = 0
    return 0


def cutoff_pages(cram: CramNode) -> int:
    """How many pages of the node may be in use."""
    return cram.total_pages - cram.target_pages
