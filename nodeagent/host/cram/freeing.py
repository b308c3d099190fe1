"""What happens to a page of compressed RAM when its last user lets go of it.

In the later generations (F1, F3) the page is overwritten with zeros before the buddy has it again, so that
the device drops what it stored; devices that keep content themselves are told by message besides
(outgoing.py). Frames of the balloon come back without: they were trimmed when they were taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from privmem.nodeagent.host.layout import PG_HELD

if TYPE_CHECKING:
    from privmem.nodeagent.host.memory import Memory, Node


def freed(memory: Memory, node: Node, pfns: np.ndarray) -> np.ndarray:
    """Frames of a registered node are being freed: those that go to the buddy now, still with their flags."""
    cram = memory.cram.nodes[node.nid]
    given_up = int(np.count_nonzero(memory.frames.flags[pfns] & np.uint16(PG_HELD) == 0))
    cram.zeroed_pages += given_up
    if cram.room_pages >= 0:
        cram.room_pages += given_up
    return pfns
