"""What the ops of a private node's owner say when the kernel asks: `folio_migrate` and `reclaim_policy`.

Models two callbacks of `struct node_private_ops` of the first version (RFC v4). `folio_migrate(src, dst)` is called
for a folio that leaves the node, after its content was copied and before the mappings return, with both folios
locked; it is told, and cannot refuse. `reclaim_policy` is asked when a cycle of kswapd begins; it can only enable
things: swap and writeback, which a cycle for a boosted watermark does without, and keeping the boost, which
generic code zeroes at the cycle's end. The compressed RAM service of that version enables all of them. Left out:
`active`, which says that a policy is there at all, and boosts of the page allocator for mixed pageblocks, which
have no counterpart here. Later versions have no callbacks.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from privmem.nodeagent.host.cram.service import Generation
from privmem.scheduler.abi import Feature

if TYPE_CHECKING:
    from privmem.nodeagent.host.memory import Memory, Node


@dataclass(frozen=True, slots=True)
class ReclaimPolicy:
    """`struct node_reclaim_policy`: what a boosted cycle may do beyond the usual."""

    may_swap: bool = False
    may_writepage: bool = False
    #: The owner raises and lowers the watermarks of its node itself.
    managed_watermarks: bool = False


#: What generic code does when no owner says anything, and what the compressed RAM service of v4 says.
GENERIC = ReclaimPolicy()
CRAM = ReclaimPolicy(may_swap=True, may_writepage=True, managed_watermarks=True)


@dataclass(slots=True)
class Migrated:
    """What `folio_migrate` of a node was called for, and the state in which it found the folios."""

    calls: int = 0
    #: Calls with source and destination locked; with the content copied; with a mapping of either back already.
    locked: int = 0
    copied: int = 0
    mapped: int = 0


class NodeCallbacks:
    """Per node: the policy that the owner set, the boost of its watermarks, and what `folio_migrate` saw."""

    def __init__(self) -> None:
        self.policy: dict[int, ReclaimPolicy] = {}
        self.boost_pages: dict[int, int] = {}
        self.migrated: dict[int, Migrated] = {}
        #: Frames that a migration has locked; empty between two calls.
        self.locked: set[int] = set()

    def snapshot(self) -> dict[str, Any]:
        """Nothing at all as long as nobody has said anything."""
        if not (self.policy or self.boost_pages or self.migrated):
            return {}
        state = {
            "policy": {nid: list(astuple(said)) for nid, said in sorted(self.policy.items())},
            "boost_pages": dict(sorted(self.boost_pages.items())),
            "migrated": {nid: list(astuple(seen)) for nid, seen in sorted(self.migrated.items())},
        }
        return {"callbacks": state}

    def restore(self, snapshot: dict[str, Any]) -> None:
        snapshot = snapshot.get("callbacks", {"policy": {}, "boost_pages": {}, "migrated": {}})
        self.policy = {int(nid): ReclaimPolicy(*map(bool, row)) for nid, row in snapshot["policy"].items()}
        self.boost_pages = {int(nid): int(pages) for nid, pages in snapshot["boost_pages"].items()}
        self.migrated = {int(nid): Migrated(*map(int, row)) for nid, row in snapshot["migrated"].items()}


def has_ops(memory: Memory) -> bool:
    """Whether the version has callbacks of a node's owner at all."""
    return memory.resolver.design.label == "v4"


def asks_folio_migrate(memory: Memory, node: Node) -> bool:
    """Whether folios that leave the node are told to its owner: MIGRATION cannot be had without the callback."""
    spec = memory.topology.node(node.nid)
    return has_ops(memory) and node.private and bool(spec.features & Feature.MIGRATION)


def folio_migrate(memory: Memory, src: np.ndarray, dst: np.ndarray) -> None:
    """The callback of the node of `src`, once for each folio."""
    frames, callbacks = memory.frames, memory.callbacks
    seen = callbacks.migrated.setdefault(frames.nid_of(int(src[0])), Migrated())
    same = frames.version[src] == frames.version[dst]
    same &= frames.owner[src] == frames.owner[dst]
    same &= frames.object_id[src] == frames.object_id[dst]
    same &= frames.object_index[src] == frames.object_index[dst]
    mapped = (frames.rmap[src] != 0) | (frames.rmap[dst] != 0)
    for at, (old, new) in enumerate(zip(src.tolist(), dst.tolist(), strict=True)):
        seen.calls += 1
        seen.locked += old in callbacks.locked and new in callbacks.locked
        seen.copied += bool(same[at])
        seen.mapped += bool(mapped[at])
        if memory.story is not None:
            memory.story.told_owner(new, old)


def boost_pages(memory: Memory, node: Node) -> int:
    """`watermark_boost` of the node's zone: what its owner set, and the pressure that compressed RAM reports."""
    own = memory.callbacks.boost_pages.get(node.nid, 0)
    return own + memory.cram.boost_pages(node.nid, node.managed_pages)


def reclaim_policy(memory: Memory, nid: int) -> ReclaimPolicy:
    """What the owner of the node says at the start of a cycle."""
    if memory.cram.generation is Generation.V4 and memory.cram.owns(nid):
        return CRAM
    return memory.callbacks.policy.get(nid, GENERIC)
