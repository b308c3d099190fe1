"""The story of pages: what was asked for, what was granted or refused and by which rule, and where pages moved.

A `Story` hangs on `Memory.story`; None, the default, costs one comparison an event. Events are kept by frame, and
a page is followed from frame to frame over its moves. `lines_of` tells the story of one page in words.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from privmem.nodeagent.host.layout import PG_UNINVITED
from privmem.scheduler import nodemask
from privmem.scheduler.abi import Reason
from privmem.scheduler.zonelist import AllocRequest

if TYPE_CHECKING:
    from privmem.nodeagent.host.memory import Memory
    from privmem.nodeagent.host.page_alloc import AllocContext

#: Events that a story keeps; the oldest go first.
EVENTS_MAX = 200_000


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a frame; `page` is (address space, virtual page) where it is known."""

    number: int
    what: str
    pfn: int
    #: Frame that the page came from, with a move.
    old_pfn: int = -1
    page: tuple[int, int] | None = None
    text: str = ""


@dataclass(slots=True)
class Story:
    """What happened, in order."""

    memory: Memory
    events: list[Event] = field(default_factory=list)
    #: Who is acting, in the words of whoever drives the kernel.
    cause: str = ""
    number: int = 0

    # -- hooks

    def allocated(self, ctx: AllocContext, pfn: int) -> None:
        """`alloc_page` gave a frame."""
        nid = self.memory.frames.nid_of(pfn)
        passed = ctx.zones[: ctx.zones.index(nid)] if nid in ctx.zones else ()
        full = f"; {_names(passed)} short of free pages" if passed else ""
        leak = "; UNINVITED" if self.memory.frames.flags[pfn] & PG_UNINVITED else ""
        self._add("allocated", pfn, text=f"{self._request(ctx)} -> node {nid}{full}{leak}")

    def refused(self, ctx: AllocContext) -> None:
        """`alloc_page` found nothing."""
        tried = _names(ctx.zones) if ctx.zones else "no node"
        self._add("refused", -1, text=f"{self._request(ctx)}: {tried} could give a page")

    def moved(self, old: int, new: int, reason: Reason) -> None:
        """A page is in another frame."""
        nid_of = self.memory.frames.nid_of
        self._add(
            "moved", new, old, text=f"from node {nid_of(old)} to node {nid_of(new)}: {_REASONS[reason]}"
        )

    def mapped(self, slot: int, pfn: int) -> None:
        """A page-table entry names the frame."""
        region = self.memory.page_table.find(slot)
        page = (region.mm_id, region.vpn + slot - region.start)
        others = int(self.memory.frames.rmap[pfn]) != 0 or self.memory.is_object_page(pfn)
        nid = self.memory.frames.nid_of(pfn)
        how = "the page was there already, it is mapped where it is" if others else "a page of its own"
        self._add(
            "mapped",
            pfn,
            page=page,
            text=f"by process {region.mm_id} on node {nid}: {how}",
        )

    def freed(self, pfn: int) -> None:
        """The frame is free again."""
        self._add("freed", pfn, text=f"on node {self.memory.frames.nid_of(pfn)}")

    def failed(self, text: str) -> None:
        """A call was refused."""
        self._add("refused", -1, text=text)

    def _add(
        self, what: str, pfn: int, old_pfn: int = -1, page: tuple[int, int] | None = None, text: str = ""
    ) -> None:
        self.number += 1
        said = f"{self.cause}: {text}" if self.cause else text
        self.events.append(Event(self.number, what, pfn, old_pfn, page, said))
        if len(self.events) > EVENTS_MAX:
            del self.events[: EVENTS_MAX // 2]

    def _request(self, ctx: AllocContext) -> str:
        """The request in words, with the design's rule."""
        request = ctx.request
        if request is None:
            return f"{_REASONS[ctx.reason]}, nodes {_names(ctx.zones)}"
        return f"{describe(request)}; {self.memory.resolver.design.rule(self.memory.topology, request)}"

    # -- telling

    def of_page(self, mm_id: int, vpn: int) -> list[Event]:
        """Events of the page at an address: from the frame that is or was mapped there, followed backwards to its
        allocation and forwards to its end.
        """
        chosen: dict[int, Event] = {}
        for at, event in enumerate(self.events):
            if event.page == (mm_id, vpn):
                chosen.update({e.number: e for e in self._life(at, event.pfn)})
        return [chosen[number] for number in sorted(chosen)]

    def of_frame(self, pfn: int) -> list[Event]:
        """Events of the page that is in a frame now."""
        return self._life(len(self.events), pfn)

    def _life(self, at: int, pfn: int) -> list[Event]:
        """The life of the page that is in `pfn` at an event: back to its allocation, on to its freeing."""
        found: list[Event] = []
        frame = pfn
        for event in reversed(self.events[:at]):
            if event.pfn == frame and event.what == "freed":
                break
            if event.pfn == frame:
                found.append(event)
                if event.what == "allocated":
                    moved = next((e for e in found if e.what == "moved" and e.pfn == frame), None)
                    if moved is None:
                        break
                if event.what == "moved":
                    frame = event.old_pfn
        frame = pfn
        found.reverse()
        for event in self.events[at:]:
            if event.what == "moved" and event.old_pfn == frame:
                frame = event.pfn
                found.append(event)
            elif event.pfn == frame:
                found.append(event)
                if event.what == "freed":
                    break
        return found


def describe(request: AllocRequest) -> str:
    """A request in words."""
    parts = [f"{_REASONS[request.reason]} near node {request.nid}"]
    if request.nodemask is not None:
        parts.append(f"only of nodes {nodemask.format_list(request.nodemask)}")
    if request.this_node:
        parts.append("with THISNODE")
    if request.private:
        parts.append("asking for private memory")
    if not request.movable:
        parts.append("not movable")
    return ", ".join(parts)


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


def _names(nids: tuple[int, ...]) -> str:
    return "node " + ",".join(map(str, nids)) if len(nids) == 1 else "nodes " + ",".join(map(str, nids))
