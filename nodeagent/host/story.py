"""The story of pages: what was asked for, what was granted or refused and by which rule, and where pages moved.

A `Story` hangs on `Memory.story`; None, the default, costs one comparison an event. Events are kept by frame, and
a page is followed from frame to frame over its moves (story_events.py). Whoever drives the kernel says in `cause`
who is acting. Bounded: the oldest half goes when there are too many events. A story is not part of the state that
a run's digest is about: it changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from privmem.nodeagent.host.layout import PG_UNINVITED, PTE_PFN_SHIFT, PTE_PRESENT, PTE_PROTNONE, PTE_ZERO
from privmem.nodeagent.host.story_events import (
    ALLOCATED,
    CACHED,
    CALLED,
    DROPPED,
    FREED,
    KILLED,
    MAPPED,
    MOVED,
    PINNED,
    REFUSED,
    STAYED,
    SWAPPED,
    UNMAPPED,
    Event,
    Place,
    life,
    of_page,
)
from privmem.scheduler import nodemask
from privmem.scheduler.abi import Mpol, Reason
from privmem.scheduler.mempolicy import Mempolicy, shown_nodes
from privmem.scheduler.zonelist import AllocRequest

if TYPE_CHECKING:
    from privmem.nodeagent.host.memory import Memory
    from privmem.nodeagent.host.mm import Vma
    from privmem.nodeagent.host.page_alloc import AllocContext
    from privmem.nodeagent.host.pagecache import MemObject
    from privmem.nodeagent.host.task import Task
    from privmem.scheduler.topology import HostTopology

#: Events that a story keeps.
EVENTS_MAX = 200_000
#: Pages of an address space of 47 bits.
_ALL_PAGES = 1 << 35


@dataclass(slots=True)
class _Fault:
    """The fault that is being handled."""

    place: Place
    number: int
    text: str
    #: The policy that the mapping has of its own, in words; empty for none.
    bound: str


@dataclass(slots=True)
class Story:
    """What happened, in order."""

    memory: Memory
    events: list[Event] = field(default_factory=list)
    events_max: int = EVENTS_MAX
    #: Who is acting, in the words of whoever drives the kernel; and what part of the kernel acts on its behalf.
    cause: str = ""
    part: str = ""
    #: Events so far, those that were dropped included.
    number: int = 0
    _fault: _Fault | None = None
    _rules: dict[AllocRequest, str] = field(default_factory=dict)
    _rules_of: HostTopology | None = None

    # -- hooks of the allocator

    def allocated(self, ctx: AllocContext, pfn: int) -> None:
        """`alloc_page` gave a frame."""
        nid = self.memory.frames.nid_of(pfn)
        passed = ctx.zones[: ctx.zones.index(nid)] if nid in ctx.zones else ()
        full = f"; {self._shortage(passed)}" if passed else ""
        self._add(ALLOCATED, pfn, text=f"{self._request(ctx)} -> {self._level(nid)}{full}{self._leak(pfn)}")

    def placed(self, request: AllocRequest, pfns: Iterable[int]) -> None:
        """Frames were taken for a move to a node that was chosen before."""
        for pfn in pfns:
            nid = self.memory.frames.nid_of(pfn)
            text = f"{describe(request)}; {self._rule(request)} -> node {nid}{self._leak(pfn)}"
            self._add(ALLOCATED, pfn, text=text)

    def refused(self, ctx: AllocContext) -> None:
        """`alloc_page` found nothing."""
        why = self._shortage(ctx.zones) if ctx.zones else "it reaches no node"
        self._add(REFUSED, -1, place=self._faulting(), text=f"{self._request(ctx)}: {why}")

    def _faulting(self) -> Place | None:
        """The page that is faulted in, unless it is the reclaim on behalf of the fault that allocates."""
        return self._fault.place if self._fault is not None and not self.part else None

    def freed(self, pfn: int) -> None:
        """The frame is free again."""
        self._add(FREED, pfn, text=f"on node {self.memory.frames.nid_of(pfn)}")

    # -- hooks of faults and mappings

    def fault(self, task: Task, vma: Vma, vpn: int, is_write: bool) -> None:
        """`handle_mm_fault` begins."""
        from privmem.nodeagent.host.filemap import vma_policy  # filemap needs this module by way of Memory

        entry = int(self.memory.page_table.pte[vma.slot_of(vpn)])
        state = "is not mapped"
        if entry == PTE_ZERO:
            state = "is the zero page"
        elif entry & PTE_PRESENT:
            state = "is mapped without access (NUMA balancing)" if entry & PTE_PROTNONE else "is read-only"
        access = "a write" if is_write else "a read"
        policy = vma_policy(self.memory, vma, vpn)
        place = (task.mm.mm_id, vpn, vpn + 1)
        text = f"{access} by process {task.pid} of a page that {state}"
        self._fault = _Fault(place, self.number, text, "" if policy is None else policy_words(policy))

    def fault_over(self, task: Task, took: int) -> None:
        """It is over; an errno means a signal, or memory that could not be had."""
        if took < 0 and self._fault is not None:
            self._add(REFUSED, -1, place=self._fault.place, text=f"{self._fault.text}: errno {-took}")
        self._fault = None

    def mapped(self, slot: int, pfn: int) -> None:
        """A page-table entry names the frame."""
        mm_id, vpn = self._address(slot)
        where = f"on node {self.memory.frames.nid_of(pfn)}"
        self._add(MAPPED, pfn, place=(mm_id, vpn, vpn + 1), text=self._how(mm_id, vpn, pfn, where))

    def unmapped(self, slot: int, pfn: int) -> None:
        """A page-table entry names the frame no more."""
        mm_id, vpn = self._address(slot)
        self._add(UNMAPPED, pfn, place=(mm_id, vpn, vpn + 1), text=f"by process {mm_id}")

    def remapped(self, slot: int, nr_pages: int) -> None:
        """`move_page_tables`: entries are at other addresses now."""
        for at in range(slot, slot + nr_pages):
            entry = int(self.memory.page_table.pte[at])
            if entry & PTE_PRESENT:
                mm_id, vpn = self._address(at)
                place = (mm_id, vpn, vpn + 1)
                self._add(MAPPED, entry >> PTE_PFN_SHIFT, place=place, text="the page is at this address now")

    def _address(self, slot: int) -> tuple[int, int]:
        region = self.memory.page_table.find(slot)
        return region.mm_id, region.vpn + slot - region.start

    def _how(self, mm_id: int, vpn: int, pfn: int, where: str) -> str:
        """What kind of fault mapped the page, if one did."""
        fault = self._fault
        name = self._name(pfn)
        if fault is None:
            return f"{name or 'the page'} {where}, for process {mm_id} too"
        if fault.place[:2] != (mm_id, vpn):
            return f"{name} {where}, in the cache, along with its neighbour (fault-around)"
        fresh = self._fresh(pfn, fault.number)
        if not name:
            return f"{fault.text}: {'a page of its own' if fresh else 'the page that is there'}, {where}"
        if fresh:
            return f"{fault.text}: {name}, brought for it, {where}"
        found = (
            f"soft fault, {fault.text}: {name} was in the cache already, and is mapped where it is, {where}"
        )
        return f"{found}; the mapping's policy ({fault.bound}) places no page" if fault.bound else found

    def _fresh(self, pfn: int, since: int) -> bool:
        """Whether the frame was allocated since then."""
        for event in reversed(self.events):
            if event.number <= since:
                return False
            if event.pfn == pfn and event.what == ALLOCATED:
                return True
        return False

    def _name(self, pfn: int) -> str:
        """`page 3 of myfile`; empty for an anonymous page."""
        frames = self.memory.frames
        if not self.memory.is_object_page(pfn):
            return ""
        holder = self.memory.page_cache.of(int(frames.object_id[pfn]))
        return f"page {int(frames.object_index[pfn])} of {holder.name}"

    # -- hooks of the page cache

    def cached(self, holder: MemObject, index: int, pfn: int, by_mapping: bool) -> None:
        """A page of a file or of shared memory was filled."""
        whose = "the mapping's" if by_mapping else "the task's"
        bound = self._fault.bound if self._fault is not None else ""
        text = f"page {index} of {holder.name}, placed by {whose} policy"
        if bound and not by_mapping:
            text += f", not by the mapping's ({bound})"
        self._add(CACHED, pfn, place=(-holder.object_id, index, index + 1), text=text)

    def dropped(self, holder: MemObject, index: int, pfn: int) -> None:
        """A page left the cache."""
        place = (-holder.object_id, index, index + 1)
        self._add(DROPPED, pfn, place=place, text=f"page {index} of {holder.name} leaves the cache")

    # -- hooks of moves

    def moved(self, old: int, new: int, reason: Reason) -> None:
        """A page is in another frame."""
        nid_of = self.memory.frames.nid_of
        why = _MOVES.get(reason, _REASONS[reason])
        if reason is Reason.PROMOTION and self.memory.nodes[nid_of(old)].fenced:
            why = "a store to a page of a write-fenced node (one without user_write)"
        text = f"from node {nid_of(old)} to node {nid_of(new)}: {why}"
        self._add(MOVED, new, old, text=text)

    def told_owner(self, new: int, old: int) -> None:
        """The owner of the node that a page leaves hears of it, before the page is mapped again."""
        nid = self.memory.frames.nid_of(old)
        self._add(
            CALLED, new, text=f"folio_migrate of node {nid}'s owner: copied, both locked, mapped by nobody"
        )

    def freed_to_owner(self, pfn: int, keeps: bool) -> None:
        """The owner of the node hears that the last reference to a page went, and may keep it."""
        nid = self.memory.frames.nid_of(pfn)
        answer = "true, the page stays with the owner" if keeps else "false, the page goes to the buddy"
        self._add(CALLED, pfn, text=f"free_folio of node {nid}'s owner: {answer}")

    def stayed(self, pfn: int, why: str) -> None:
        """A page that somebody wanted to move or take stays where it is."""
        self._add(STAYED, pfn, text=f"on node {self.memory.frames.nid_of(pfn)}: {why}")

    def swapped(self, pfn: int, slot: int) -> None:
        """What a page holds is on swap, and nobody maps the page any more."""
        self._add(SWAPPED, pfn, text=f"to slot {slot} of the swap area")

    def pinned(self, pfn: int, longterm: bool) -> None:
        """A device holds the page where it is."""
        nid = self.memory.frames.nid_of(pfn)
        self._add(PINNED, pfn, text=f"on node {nid}, {'for long' if longterm else 'for a short while'}")

    def killed(self, mm_id: int, why: str) -> None:
        """The OOM killer chose a process: all of its memory goes."""
        self._add(KILLED, -1, place=(mm_id, 0, _ALL_PAGES), text=f"process {mm_id}, by the OOM killer{why}")

    # -- what those who drive the kernel say

    def acts(self, who: str) -> None:
        """From here on it is somebody else who acts."""
        self.cause, self.part, self._fault = who, "", None

    def waits(self, why: str) -> None:
        """What is going on must wait, and will be begun anew."""
        self._add(REFUSED, -1, place=self._faulting(), text=why)

    def called(self, place: Place | None, text: str) -> None:
        """A call about a range of pages went well."""
        self._add(CALLED, -1, place=place, text=text)

    def failed(self, place: Place | None, text: str) -> None:
        """A call was refused."""
        self._add(REFUSED, -1, place=place, text=text)

    # -- inside

    def _add(
        self, what: str, pfn: int, old_pfn: int = -1, place: Place | None = None, text: str = ""
    ) -> None:
        self.number += 1
        cause = f"{self.cause}, {self.part}" if self.part and self.cause else self.part or self.cause
        self.events.append(Event(self.number, self.memory.now_ns, what, pfn, old_pfn, place, cause, text))
        if len(self.events) > self.events_max:
            del self.events[: self.events_max // 2]

    def _request(self, ctx: AllocContext) -> str:
        """The request in words, with the design's rule."""
        request = ctx.request
        if request is None:
            return f"{_REASONS[ctx.reason]}, {node_words(ctx.zones)}"
        return f"{describe(request)}; {self._rule(request)}"

    def _rule(self, request: AllocRequest) -> str:
        """The design's sentence for a request, under the lists that are in force."""
        topology = self.memory.topology
        if topology is not self._rules_of:
            self._rules, self._rules_of = {}, topology
        if request not in self._rules:
            self._rules[request] = self.memory.resolver.design.rule(topology, request)
        return self._rules[request]

    def _level(self, nid: int) -> str:
        node = self.memory.nodes[nid]
        free = node.free_pages
        marks = (
            ("high", node.wmark.high_pages),
            ("low", node.wmark.low_pages),
            ("min", node.wmark.min_pages),
        )
        above = next(
            (f"above its {name} watermark {mark}" for name, mark in marks if free >= mark), "below min"
        )
        return f"node {nid} ({free} pages left, {above})"

    def _shortage(self, nids: tuple[int, ...]) -> str:
        parts = []
        for nid in nids:
            node = self.memory.nodes[nid]
            parts.append(f"node {nid} has {node.free_pages} free, low watermark {node.wmark.low_pages}")
        return ", ".join(parts)

    def _leak(self, pfn: int) -> str:
        return (
            "; UNINVITED: nobody asked for this node" if self.memory.frames.flags[pfn] & PG_UNINVITED else ""
        )

    # -- telling

    def of_page(self, space: int, page: int) -> list[Event]:
        """Events of the page at an address, or of a page of an object: see story_events."""
        return of_page(self.events, space, page)

    def of_frame(self, pfn: int) -> list[Event]:
        """Events of the page that is in a frame now."""
        return life(self.events, len(self.events), pfn)

    # -- state

    def snapshot(self) -> dict[str, Any]:
        """For checkpoints; who is acting is said anew."""
        return {"number": self.number, "events": [event.plain() for event in self.events]}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Go on after the events of a snapshot."""
        self.number = int(snapshot["number"])
        self.events = [Event.from_plain(row) for row in snapshot["events"]]


def describe(request: AllocRequest) -> str:
    """A request in words."""
    parts = [f"{_REASONS[request.reason]} near node {request.nid}"]
    if request.nodemask is not None:
        parts.append(f"only of {node_words(tuple(nodemask.nodes(request.nodemask)))}")
    if request.this_node:
        parts.append("with THISNODE")
    if request.private:
        parts.append("asking for private memory")
    if not request.movable:
        parts.append("not movable")
    return ", ".join(parts)


def policy_words(policy: Mempolicy) -> str:
    """`bind to node 2`."""
    word = Mpol(policy.mode).name.lower()
    nodes = shown_nodes(policy)
    return f"{word} {node_words(tuple(nodemask.nodes(nodes)))}" if nodes else word


def node_words(nids: tuple[int, ...]) -> str:
    """`node 2`, `nodes 0 1`."""
    if not nids:
        return "no node"
    return f"node{'s' if len(nids) > 1 else ''} {' '.join(map(str, nids))}"


_REASONS: dict[Reason, str] = {
    Reason.FAULT: "a fault without a policy",
    Reason.POLICY: "a fault under a policy",
    Reason.PAGECACHE: "filling the page cache",
    Reason.DEMOTION: "demotion",
    Reason.PROMOTION: "promotion",
    Reason.USER_MOVE: "a move that a user asked for",
    Reason.OWNER: "the owner's own allocation",
    Reason.CONTIG: "a contiguous range",
    Reason.KERNEL: "the kernel's own allocation",
    Reason.HOTPLUG: "memory hotplug",
    Reason.SLAB: "a slab page",
    Reason.PAGETABLE: "a page table",
    Reason.HUGETLB: "the huge page pool",
    Reason.SWAPIN: "a page back from swap",
    Reason.COLLAPSE: "a huge page for small ones",
    Reason.KSM: "merging equal pages",
    Reason.NETWORK: "a message buffer",
}
#: Where a reason means something else for a move.
_MOVES: dict[Reason, str] = {
    Reason.KERNEL: "compaction",
    Reason.CONTIG: "room for a contiguous range",
    Reason.HOTPLUG: "its memory goes offline",
    Reason.OWNER: "the driver of the private node moves it",
}
