"""What the owner of a private node does with it: take pages for itself, and give them back.

Models the calls that the series offers to drivers: `alloc_pages_node` with `GFP_PRIVATE` (first version), the
private-list calls of the later ones, `folio_alloc_node_private` (F3: one node, THISNODE mandatory, a failure
is returned and never an OOM kill). Pages of an owner are on no LRU list; nobody else moves them.
"""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import Any

import numpy as np

from privmem.nodeagent.host.layout import PG_HELD
from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.page_alloc import AllocContext, alloc_page, release_frames
from privmem.scheduler.abi import Reason
from privmem.scheduler.errors import InvariantError
from privmem.scheduler.zonelist import AllocRequest


def owner_request(nid: int, this_node: bool = True) -> AllocRequest:
    """What an owner asks for: private memory of this node; without THISNODE the node is a preference only."""
    return AllocRequest(nid, None, Reason.OWNER, this_node=this_node, private=True)


def owner_context(memory: Memory, nid: int, this_node: bool = True) -> AllocContext:
    """`owner_request`, resolved. It never reclaims by force: a driver deals with failure itself."""
    request = owner_request(nid, this_node)
    resolution = memory.resolver.resolve(request, None)
    return AllocContext(
        resolution.zones, Reason.OWNER, uninvited=resolution.uninvited, request=request, may_reclaim=False
    )


def device_context(memory: Memory, nid: int, owner: int) -> AllocContext:
    """A fault in a device's anonymous mapping: the owner's call for a process, which reclaim may help."""
    return replace(owner_context(memory, nid), may_reclaim=True, owner=owner)


def give_back_kept(memory: Memory, nid: int) -> int:
    """The owner lets go of what its `free_folio` has kept, which is not asked again: how many pages."""
    callbacks = memory.callbacks
    pfns = [pfn for pfn, of in callbacks.kept.items() if of == nid]
    for pfn in pfns:
        del callbacks.kept[pfn]
    keeps = callbacks.keeps.pop(nid, None)
    if pfns:
        release_frames(memory, memory.nodes[nid], np.array(pfns, dtype=np.int32))
    if keeps is not None:
        callbacks.keeps[nid] = keeps
    return len(pfns)


class OwnerPages:
    """Single pages that owners hold: frame -> who."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.held: dict[int, str] = {}

    def alloc(self, owner: str, nid: int, this_node: bool = True) -> int:
        """A page for the owner, or -ENOMEM; nobody is killed for it."""
        context = owner_context(self.memory, nid, this_node)
        if not context.zones:
            return -errno.ENOMEM
        pfn = alloc_page(self.memory, context)
        if pfn >= 0:
            self.memory.frames.flags[pfn] |= np.uint16(PG_HELD)
            self.held[pfn] = owner
        return pfn

    def free(self, pfn: int) -> None:
        """The last reference goes: the owner's `free_folio` may keep the page, else it is free again."""
        if pfn not in self.held:
            raise InvariantError(f"frame {pfn} is held by no owner")
        del self.held[pfn]
        memory = self.memory
        release_frames(memory, memory.nodes[memory.frames.nid_of(pfn)], np.array([pfn], dtype=np.int32))

    def snapshot(self) -> dict[str, Any]:
        return {"held": dict(sorted(self.held.items()))}

    def restore(self, snapshot: dict[str, Any]) -> None:
        self.held = {int(pfn): owner for pfn, owner in snapshot["held"].items()}
