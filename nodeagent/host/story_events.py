"""The events of a story, and following one page through them: from its first request to its end, over its moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

#: Pages of an address space (its id), or of a file or shared memory (its id, negative): first, one past the last.
Place = tuple[int, int, int]

# What happens to a page.
REFUSED, ALLOCATED, CACHED, MAPPED = "refused", "allocated", "cached", "mapped"
MOVED, STAYED, UNMAPPED, DROPPED, FREED = "moved", "stayed", "unmapped", "dropped", "freed"
SWAPPED, PINNED, KILLED = "swapped", "pinned", "killed"
#: A system call or command about a range of pages.
CALLED = "called"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a frame, or to what is asked for or mapped at a place."""

    number: int
    time_ns: int
    what: str
    #: The frame, and the one that the page came from with a move; -1 for none.
    pfn: int
    old_pfn: int = -1
    place: Place | None = None
    #: Who was acting.
    cause: str = ""
    text: str = ""

    def plain(self) -> list[Any]:
        """As a row of plain values; `from_plain` is the inverse."""
        place = None if self.place is None else list(self.place)
        return [
            self.number, self.time_ns, self.what, self.pfn, self.old_pfn, place, self.cause, self.text,
        ]  # fmt: skip

    @staticmethod
    def from_plain(row: list[Any]) -> Event:
        """From `plain`'s row."""
        number, time_ns, what, pfn, old_pfn, place, cause, text = row
        return Event(
            number, time_ns, what, pfn, old_pfn, None if place is None else tuple(place), cause, text
        )

    def __str__(self) -> str:
        return f"{self.what}: {self.cause + ': ' if self.cause else ''}{self.text}"


def of_page(events: Sequence[Event], space: int, page: int) -> list[Event]:
    """Events of the page at an address, or of a page of an object (its negative id): requests and calls about it,
    and the life of every frame that was ever there.
    """
    chosen: dict[int, Event] = {}
    for at, event in enumerate(events):
        place = event.place
        if place is None or place[0] != space or not place[1] <= page < place[2]:
            continue
        chosen[event.number] = event
        if event.pfn >= 0:
            chosen.update({e.number: e for e in life(events, at, event.pfn)})
    return [chosen[number] for number in sorted(chosen)]


def life(events: Sequence[Event], at: int, pfn: int) -> list[Event]:
    """The life of the page that is in `pfn` at an event: back to its first allocation, on to its freeing."""
    found: list[Event] = []
    frame, wanted = pfn, -1
    for event in reversed(events[:at]):
        if event.pfn == wanted and event.what == ALLOCATED:
            found.append(event)  # the request for the frame that it moved to
            wanted = -1
        if event.pfn != frame:
            continue
        if event.what == FREED:
            break
        found.append(event)
        if event.what == ALLOCATED:
            break
        if event.what == MOVED:
            frame, wanted = event.old_pfn, frame
    found.reverse()
    return found + _rest_of_life(events[at:], pfn)


def _rest_of_life(events: Sequence[Event], frame: int) -> list[Event]:
    found: list[Event] = []
    asked: dict[int, Event] = {}
    for event in events:
        if event.what == ALLOCATED and event.pfn != frame:
            asked[event.pfn] = event
        elif event.what == MOVED and event.old_pfn == frame:
            frame = event.pfn
            if frame in asked:
                found.append(asked[frame])
            found.append(event)
        elif event.pfn == frame:
            found.append(event)
            if event.what == FREED:
                break
    return found
