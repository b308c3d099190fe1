"""What the compressed RAM service remembers: nodes, gates, balloons, ratios. State and plain rules only.

Models the service of the private-node series in its generations: `v4` (pressure), `F1` (also that of the
capability versions: gate words, ratio, balloon of free pages, hot ring), `F3` (registration by ranges,
capacity, balloon of pageblocks). Which one runs is the isolation design's, unless an option names another
that the design can carry. What works on a `Memory` is beside: placement.py, balloon.py, capacity.py,
freeing.py, fence.py, hot_ring.py; this module knows none, so that `Memory` can hold it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from privmem.scheduler.abi import Feature

#: A ratio of 1.00; what the device is taken to reach when nobody says (F1, F3).
RATIO_ONE = 1000
#: Pressure of the first generation at which no page may come in any more.
PRESSURE_FULL = 1000
#: What the first generation's flush callback answers for a page that is freed: the device has forgotten it; the
#: driver keeps it until the device has; there is no room to remember it. And that there is no callback.
FLUSH_RESOLVED, FLUSH_DEFERRED, FLUSH_FULL, FLUSH_NONE = 0, 1, 2, -1
#: What a node of a run is counted as being in (control.py).
STATES = ("normal", "pressure", "closed", "refusing")


class Generation(StrEnum):
    """Whose service."""

    V4 = "v4"
    F1 = "F1"
    F3 = "F3"


def default_generation(design_label: str) -> Generation:
    """The generation that was written for an isolation design (`Design.label`)."""
    return {"v4": Generation.V4, "F3": Generation.F3}.get(design_label, Generation.F1)


def can_carry(design_label: str, generation: Generation) -> bool:
    """Whether a design can carry a generation: its own, and the latest, which needs nothing but an owner's
    door, wherever there is a private list.
    """
    if generation == default_generation(design_label):
        return True
    return generation is Generation.F3 and design_label not in ("v4", "nofb")


@dataclass(slots=True)
class Gate:
    """The words that keep pages out. Any of them sets the no-allocation mark of the zone."""

    #: Sticky: what the owner said last; only he says otherwise.
    alloc_allowed: bool = True
    #: The node is being taken down.
    migration_blocked: bool = False
    #: The balloon has not caught up with what the device can hold.
    converge_block: bool = False
    #: Set by tests.
    test_block: bool = False
    #: Pressure is at its highest (v4).
    full_pressure: bool = False

    @property
    def closed(self) -> bool:
        """Whether no page may come in."""
        blocked = self.migration_blocked or self.converge_block or self.test_block or self.full_pressure
        return blocked or not self.alloc_allowed


@dataclass(slots=True)
class CramNode:
    """One registered node."""

    nid: int
    owner: str
    features: Feature
    #: (start, pages) in the node's span.
    ranges: list[tuple[int, int]]
    gate: Gate = field(default_factory=Gate)
    #: Ratios in thousandths: what the perceived size was reckoned with, and what the device reaches now.
    nominal_ratio: int = RATIO_ONE
    real_ratio: int = RATIO_ONE
    #: Pages that the balloon is to hold; and what it holds, as (first frame, pages), in the order of taking.
    target_pages: int = 0
    balloon: list[tuple[int, int]] = field(default_factory=list)
    #: Rounds of convergence without progress, one after the other.
    stalled_rounds: int = 0
    #: The driver's answer to a trim: errno (0, EAGAIN, EBUSY), and for how many calls; pages that fail at EAGAIN.
    trim_error: int = 0
    trim_failures: int = 0
    trim_bad_pages: int = 0
    #: Pages that the device was told to forget, and pages that were overwritten with zeros instead.
    trimmed_pages: int = 0
    zeroed_pages: int = 0
    #: Pages that came in and found no place since registration.
    placed_pages: int = 0
    refused_pages: int = 0
    #: Pages that the device can still store, for devices whose host does not know it; -1 for no such bound.
    room_pages: int = -1
    #: Pressure of the first generation, 0 to 1000.
    pressure: int = 0
    #: Pages after which the device says that it is full, in the midst of what is going on (v4); 0 for never.
    full_after_pages: int = 0
    #: The first generation's flush callback, and the driver's buffers of freed pages: entries of each, frames that
    #: wait, whether media operations fail and for how long they have, and tries to take the memory offline.
    flush_answer: int = FLUSH_NONE
    buffer_entries: int = 0
    deferred: list[int] = field(default_factory=list)
    media_fails: bool = False
    media_failing_s: int = 0
    offline_tries: int = 0
    #: In a run whose device reports (control.py): that it does, memory that it uses by its last report, until when
    #: the worker is busy, time in each of STATES, and pages that were written in place and sent again.
    controlled: bool = False
    device_used_bytes: int = 0
    busy_until_ns: int = 0
    state_ns: list[int] = field(default_factory=lambda: [0] * len(STATES))
    #: The least that could be used of it so far; -1 at first.
    usable_least_pages: int = -1
    written_in_place_pages: int = 0
    #: Of those, pages that the device then refused: lost.
    lost_pages: int = 0

    @property
    def total_pages(self) -> int:
        """The perceived size."""
        return sum(pages for _, pages in self.ranges)

    @property
    def balloon_pages(self) -> int:
        """What the balloon holds."""
        return sum(pages for _, pages in self.balloon)


class CramService:
    """All compressed RAM of one host; nodes in order of registration."""

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self.nodes: dict[int, CramNode] = {}
        #: Set while the module is being unloaded: nobody registers.
        self.unloading = False
        #: /sys/kernel/debug/cram: pages promoted because they were written or hot, and failures of it.
        self.promote_count = 0
        self.promote_fail = 0
        #: F1 and its later branch: what write(2) does to a page of a file that nobody maps, promote or drop it.
        self.drops_on_write = False
        #: Hot frames that devices reported and nobody looked at yet, oldest first; reports that found it full.
        self.hot: list[int] = []
        self.hot_dropped = 0

    def owns(self, nid: int) -> bool:
        """Whether a node is registered."""
        return nid in self.nodes

    def boost_pages(self, nid: int, managed_pages: int) -> int:
        """How far pressure raises the mark up to which kswapd frees pages of a node (v4)."""
        cram = self.nodes.get(nid)
        return managed_pages * cram.pressure // PRESSURE_FULL if cram else 0

    def open_nodes(self) -> Iterable[CramNode]:
        """Nodes whose gate is open, in order of registration."""
        return [node for node in self.nodes.values() if not node.gate.closed]

    def snapshot(self) -> dict[str, Any]:
        return {
            "generation": str(self.generation),
            "nodes": [_node_snapshot(node) for node in self.nodes.values()],
            "numbers": [self.unloading, self.promote_count, self.promote_fail, self.hot_dropped],
            "hot": list(self.hot),
            "drops_on_write": self.drops_on_write,
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        self.generation = Generation(snapshot["generation"])
        self.nodes = {row["nid"]: _node_from(row) for row in snapshot["nodes"]}
        self.unloading, self.promote_count, self.promote_fail, self.hot_dropped = snapshot["numbers"]
        self.drops_on_write = bool(snapshot["drops_on_write"])
        self.hot = [int(pfn) for pfn in snapshot["hot"]]


def _node_snapshot(node: CramNode) -> dict[str, Any]:
    return asdict(node) | {
        "features": int(node.features),
        "ranges": [list(part) for part in node.ranges],
        "balloon": [list(part) for part in node.balloon],
    }


def _node_from(row: dict[str, Any]) -> CramNode:
    fields = dict(row)
    fields["features"] = Feature(row["features"])
    fields["ranges"] = [(int(a), int(b)) for a, b in row["ranges"]]
    fields["balloon"] = [(int(a), int(b)) for a, b in row["balloon"]]
    fields["gate"] = Gate(**row["gate"])
    return CramNode(**fields)
