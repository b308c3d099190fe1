"""The story of a page of a litmus test, in the words of the file: for `privmem why`, and below failures."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from privmem.cluster.litmus.expectations import Claim, choose
from privmem.cluster.litmus.steps import Call
from privmem.cluster.litmus.subjects import nodes_of
from privmem.cluster.litmus.values import RangeRef
from privmem.cluster.litmus.world import Stuck, World
from privmem.nodeagent.host.story_events import MAPPED, REFUSED, Event, Place
from privmem.scheduler.abi import PAGE_SHIFT

#: Lines of the story of a page below a failure.
LINES_MAX = 5


def note_call(world: World, actor: str, call: Call, error: str, outcome: Any) -> None:
    """A step was taken: calls about a range of pages belong to their story, and so do those that were refused."""
    story = world.kernel.memory.story
    assert story is not None
    ref = call.values.get("range")
    place = None
    if isinstance(ref, RangeRef):
        try:
            place = place_of(world, actor, ref)
        except Stuck:
            place = None  # the mapping is what the call made, or could not make
    if error:
        told = story.events and story.events[-1].what == REFUSED and story.events[-1].cause == story.cause
        if not told:
            story.failed(place, error)
    elif place is not None:
        shown = outcome is None and story.events and story.events[-1].cause == story.cause
        if not shown:  # otherwise what came of it says more
            story.called(place, "ok" if outcome is None else f"gives {outcome}")


def place_of(world: World, actor: str, ref: RangeRef) -> Place:
    """The pages that a reference means, as stories name them. Raises Stuck."""
    if ref.is_file:
        holder = world.file(ref.name)
        return -holder.object_id, ref.first, holder.nr_pages if ref.last is None else ref.last
    mapped = world.mapping(actor, ref)
    first = mapped.addr >> PAGE_SHIFT
    mm_id = world.process(mapped.process).task.mm.mm_id
    return mm_id, first, first + (mapped.length >> PAGE_SHIFT)


def story_of(world: World, ref: RangeRef) -> list[Event]:
    """Events of the first page of a range. Raises Stuck for a range without pages."""
    story = world.kernel.memory.story
    assert story is not None
    space, first, end = place_of(world, "", ref)
    if first >= end:
        raise Stuck(f"{ref} holds no page")
    return story.of_page(space, first)


def lines_of(world: World, events: Sequence[Event]) -> list[str]:
    """Events in the words of the file, those of one step below each other."""
    lines: list[str] = []
    cause = None
    for event in events:
        if event.cause != cause:
            lines.append(named(world, event.cause))
            cause = event.cause
        lines.append(f"  {event.what:10s}{named(world, event.text)}")
    return lines


def named(world: World, text: str) -> str:
    """Nodes and processes as the file names them."""

    def nodes(match: re.Match[str]) -> str:
        names = [world.node_name(int(number)) for number in re.split("[ ,]", match[2])]
        return f"{match[1]} {','.join(names)}" if match[1] == "nodes" else names[0]

    def process(match: re.Match[str]) -> str:
        names = [name for name, process in world.processes.items() if process.pid == int(match[1])]
        return names[0] if names else match[0]

    text = re.sub(r"\b(nodes?) (\d+(?:[ ,]\d+)*)\b", nodes, text)
    return re.sub(r"\bprocess (\d+)\b", process, text)


# -- below failures


def story_of_claim(world: World, claim: Claim, design: str) -> list[str]:
    """The story of the first page that is not as a claim wants it; nothing for claims that are not about pages."""
    story = world.kernel.memory.story
    ref = claim.values.get("range")
    if story is None or not isinstance(ref, RangeRef):
        return []
    space, first, _ = place_of(world, "", ref)
    index = _first_wrong(world, claim, design)
    events = story.of_page(space, first + index)
    lines = lines_of(world, events[-LINES_MAX:])
    if not ref.is_file and nodes_of(world, claim.values)[index : index + 1] == [None]:
        lines.append(_why_absent(world, claim, index, {event.what for event in events}))
    return lines


def _why_absent(world: World, claim: Claim, index: int, happened: Collection[str]) -> str:
    """A page table maps what its own process has touched: said where a reader may have thought otherwise."""
    ref: RangeRef = claim.values["range"]
    owner = world.mapping("", ref).process
    why = (
        "" if MAPPED in happened else ": it has not touched it, or only read it (the zero page is on no node)"
    )
    return f"{owner} has no page at {ref.name}[{ref.first + index}]{why}"


def story_of_step(world: World) -> list[str]:
    """What was refused in the step that just failed."""
    story = world.kernel.memory.story
    if story is None:
        return []
    mine = [e for e in story.events if e.cause.startswith(story.cause) and e.what == REFUSED]
    return [f"{event.what:10s}{named(world, event.text)}" for event in mine[-LINES_MAX:]]


def _first_wrong(world: World, claim: Claim, design: str) -> int:
    chosen = choose(claim.wanted, design)
    wanted = chosen.plain() if chosen is not None else None
    here = nodes_of(world, claim.values)
    if claim.subject.pattern.verb == "no page of":
        forbidden = [wanted] if isinstance(wanted, str) else list(wanted or ())
        return next((at for at, name in enumerate(here) if name in forbidden), 0)
    if isinstance(wanted, dict):
        right = [name for name, count in wanted.items() if count]
        return next((at for at, name in enumerate(here) if name not in right), 0)
    return next((at for at, name in enumerate(here) if name is None), 0)
