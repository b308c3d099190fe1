"""What the ops of a private node's owner say when the kernel asks: `free_folio`, `folio_migrate`, `reclaim_policy`.

Models three callbacks of `struct node_private_ops` of the first version (RFC v4). `free_folio` is called when the
last reference to a page of the node goes, whoever had it, before the buddy has it again: for a user's page that is
unmapped, reclaimed or has moved away as well as for the owner's own. An owner that answers true keeps the page.
`folio_migrate(src, dst)` is called for a folio that leaves the node, after its content was copied and before the
mappings return, with both folios locked; it is told, and cannot refuse. `reclaim_policy` is asked when a cycle of
kswapd begins; it can only enable things: swap and writeback, which a boosted cycle does without, and keeping the
boost, which generic code zeroes at the cycle's end. The compressed RAM service of that version enables
all of them, and has a `free_folio` of its own (cram/freeing.py). Left out: that a huge page is one folio (it is
freed as 512 pages), `active`, which says that a policy is there at all, and boosts of the page allocator for mixed
pageblocks, which have no counterpart here. Later versions have no callbacks.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from privmem.nodeagent.host.cram.service import Generation
from privmem.nodeagent.host.layout import PG_ALLOCATED, PG_HELD
from privmem.scheduler.abi import Feature, Reason

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
        #: Nodes whose owner has a `free_folio`: whether it keeps freed pages; pages told; frames that it has kept.
        self.keeps: dict[int, bool] = {}
        self.free_calls: dict[int, int] = {}
        self.kept: dict[int, int] = {}
        #: Frames that a migration has locked; empty between two calls.
        self.locked: set[int] = set()

    def snapshot(self) -> dict[str, Any]:
        """Nothing at all as long as nobody has said anything."""
        if not (self.policy or self.boost_pages or self.migrated or self.keeps or self.free_calls):
            return {}
        state: dict[str, Any] = {
            "policy": {nid: list(astuple(said)) for nid, said in sorted(self.policy.items())},
            "boost_pages": dict(sorted(self.boost_pages.items())),
            "migrated": {nid: list(astuple(seen)) for nid, seen in sorted(self.migrated.items())},
            "keeps": dict(sorted(self.keeps.items())),
            "free_calls": dict(sorted(self.free_calls.items())),
            "kept": dict(sorted(self.kept.items())),
        }
        return {"callbacks": state}

    def restore(self, snapshot: dict[str, Any]) -> None:
        names = ("policy", "boost_pages", "migrated", "keeps", "free_calls", "kept")
        snapshot = {name: snapshot.get("callbacks", {}).get(name, {}) for name in names}
        self.policy = {int(nid): ReclaimPolicy(*map(bool, row)) for nid, row in snapshot["policy"].items()}
        self.boost_pages = {int(nid): int(pages) for nid, pages in snapshot["boost_pages"].items()}
        self.migrated = {int(nid): Migrated(*map(int, row)) for nid, row in snapshot["migrated"].items()}
        self.keeps = {int(nid): bool(keeps) for nid, keeps in snapshot["keeps"].items()}
        self.free_calls = {int(nid): int(calls) for nid, calls in snapshot["free_calls"].items()}
        self.kept = {int(pfn): int(nid) for pfn, nid in snapshot["kept"].items()}


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


def free_folio(memory: Memory, node: Node, pfns: np.ndarray) -> np.ndarray:
    """The callback for pages of the node whose last reference went: those that go to the buddy now. What the owner
    keeps is its own from then on, and charged to nobody.
    """
    callbacks, keeps = memory.callbacks, memory.callbacks.keeps[node.nid]
    callbacks.free_calls[node.nid] = callbacks.free_calls.get(node.nid, 0) + len(pfns)
    if memory.story is not None:
        for pfn in pfns.tolist():
            memory.story.freed_to_owner(pfn, keeps)
    if not keeps:
        return pfns
    callbacks.kept.update(dict.fromkeys(pfns.tolist(), node.nid))
    memory.frames.flags[pfns] = np.uint16(PG_ALLOCATED | PG_HELD)
    memory.frames.reason[pfns] = int(Reason.OWNER)
    memory.lru_batches.forget(pfns)
    if memory.memcg.active:
        memory.memcg.uncharge(pfns)
    return pfns[:0]


def boost_pages(memory: Memory, node: Node) -> int:
    """`watermark_boost` of the node's zone: what its owner set, and the pressure that compressed RAM reports."""
    own = memory.callbacks.boost_pages.get(node.nid, 0)
    return own + memory.cram.boost_pages(node.nid, node.managed_pages)


def reclaim_policy(memory: Memory, nid: int) -> ReclaimPolicy:
    """What the owner of the node says at the start of a cycle."""
    if memory.cram.generation is Generation.V4 and memory.cram.owns(nid):
        return CRAM
    return memory.callbacks.policy.get(nid, GENERIC)
