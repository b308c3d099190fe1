"""Written pages move on to their next version: when somebody looks at their content, by the phase of that time.

A look happens when a page goes to a storing device or to swap, and for nodes that are written in place at the
end of each epoch (cram/in_place.py). All stores between two looks count as one, made at the time of the look.
"""

from __future__ import annotations

import numpy as np

from privmem.nodeagent.content import version_after
from privmem.nodeagent.host import literal
from privmem.nodeagent.host.memory import Memory


def advance(memory: Memory, pfns: np.ndarray, dirty: np.ndarray) -> None:
    """Frames of which `dirty` (uint16, 0 or 1) were written since the last look."""
    versions = memory.frames.version
    before = versions[pfns]
    versions[pfns] += dirty
    if not memory.page_table.content_phases or not dirty.any():
        return
    source, _ = literal.described(memory, pfns)
    for number, starts_ns in memory.page_table.content_phases.items():
        at = np.flatnonzero((source == number) & (dirty != 0))
        phase = sum(start_ns <= memory.now_ns for start_ns in starts_ns)
        versions[pfns[at]] = version_after(before[at], phase)
