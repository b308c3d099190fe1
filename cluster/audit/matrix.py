"""Running the activities, judging what landed and what left, and the matrix.

What is a leak is judged apart from the designs: a page on a private node, or one that left it, is compared with
what the actor asked for and with what the node's driver wished for in the configuration. No cell is looked up.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from privmem.cluster.audit.activities import Activity, NotRunnable
from privmem.cluster.audit.catalogue import ACTIVITIES
from privmem.cluster.audit.machine import AuditMachine, Scene
from privmem.nodeagent.host.process import Signalled

#: Lines of the story of a leaked page that a cell keeps.
TRIP_LINES_MAX = 12
_SPARE = "abcdefghijklmnopqrstuvwxyz0123456789"


@dataclass(slots=True)
class Cell:
    """What one activity did under one design."""

    activity: str
    design: str
    #: Device class -> pages that landed there uninvited, and that left there uninvited.
    landed: dict[str, int] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    #: Device class -> pages that stayed and were worked on there uninvited.
    touched: dict[str, int] = field(default_factory=dict)
    #: What was done to those pages -> how many.
    services: dict[str, int] = field(default_factory=dict)
    #: Pages that landed where they were invited: shows that the activity did something.
    invited: int = 0
    #: Why the activity could not run at all.
    not_run: str = ""
    #: What the activity itself reported (an errno, a count).
    notes: list[str] = field(default_factory=list)
    #: The trip of the first page that leaked.
    trip: list[str] = field(default_factory=list)

    @property
    def leaks(self) -> int:
        """Pages in all."""
        return sum(sum(pages.values()) for pages in (self.landed, self.left, self.touched))

    def text(self) -> str:
        """As the matrix shows it."""
        if self.not_run:
            return "n/a"
        parts = [f"+{count} {kind.split('-')[0]}" for kind, count in self.landed.items()]
        parts += [f"-{count} {kind.split('-')[0]}" for kind, count in self.left.items()]
        parts += [f"~{count} {kind.split('-')[0]}" for kind, count in self.touched.items()]
        return " ".join(parts) or "0"

    def short(self, letters: Mapping[str, str]) -> str:
        """The same with a letter a device class, and classes with equal counts together."""
        if self.not_run:
            return "n/a"
        parts = []
        for sign, pages in (("+", self.landed), ("-", self.left), ("~", self.touched)):
            for count in dict.fromkeys(pages.values()):
                classes = "".join(letter for kind, letter in letters.items() if pages.get(kind) == count)
                parts.append(f"{sign}{count} {classes}")
        return " ".join(parts) or "0"

    def plain(self) -> dict[str, Any]:
        """For --json."""
        return {
            "activity": self.activity,
            "design": self.design,
            "landed": self.landed,
            "left": self.left,
            "touched": self.touched,
            "services": self.services,
            "invited": self.invited,
            "not_run": self.not_run,
            "notes": self.notes,
            "trip": self.trip,
        }


def letters_of(machine: AuditMachine) -> dict[str, str]:
    """A capital letter for each class of private devices: the first of its name that is not taken."""
    letters: dict[str, str] = {}
    for node in machine.private:
        if node.kind not in letters:
            free = [c for c in (node.kind + _SPARE).upper() if c.isalnum() and c not in letters.values()]
            letters[node.kind] = free[0]
    return letters


def audit(machine: AuditMachine, designs: Sequence[str], only: str = "") -> list[Cell]:
    """Every activity (or those whose name holds `only`) under every design."""
    chosen = [activity for activity in ACTIVITIES if only in activity.name]
    return [audit_cell(machine, design, activity) for activity in chosen for design in designs]


def audit_cell(machine: AuditMachine, design: str, activity: Activity) -> Cell:
    """One activity on a fresh machine."""
    cell = Cell(activity.name, design)
    scene = Scene(
        machine.with_zone(activity.zone) if activity.zone else machine,
        design,
        demotion=activity.demotion,
        balancing=activity.balancing,
    )
    scene.settle()
    judge(scene, activity, cell)
    return cell


def judge(scene: Scene, activity: Activity, cell: Cell) -> None:
    """Run an activity in a settled scene, and count what landed and what left without being invited."""
    try:
        activity.run(scene, cell.notes)
    except NotRunnable as reason:
        cell.not_run = str(reason)
        return
    except OSError as failure:
        cell.notes.append(errno.errorcode.get(failure.errno or 0, str(failure)))
    except Signalled as end:
        cell.notes.append(end.signal.name)
    after = scene.frames()
    for nid, node in scene.private.items():
        came = after[nid] - scene.before[nid] - scene.of_device(nid) - activity.own(scene)
        went = scene.before[nid] - after[nid]
        # A range that displaced its occupants uses their frames: it came, and they went if not within the node.
        taken = scene.taken_over(nid) - activity.own(scene)
        stayed = len(scene.of_device(nid) - scene.before[nid])
        came, went = came | taken, went | set(sorted(taken)[stayed:])
        _judge_in_place(scene, activity, cell, nid, scene.before[nid] & after[nid] - came - went)
        if nid in activity.invites(scene):
            cell.invited += len(came) + len(went)
            continue
        if came:
            cell.landed[node.kind] = cell.landed.get(node.kind, 0) + len(came)
        if went:
            cell.left[node.kind] = cell.left.get(node.kind, 0) + len(went)
        if (came or went) and not cell.trip:
            cell.trip = _trip(scene, min(came or went), bool(came))
    scene.kernel.validate()


def _judge_in_place(scene: Scene, activity: Activity, cell: Cell, nid: int, stayed: set[int]) -> None:
    """Count the pages that stayed where they were and were worked on."""
    traces = scene.traces(nid, stayed)
    pages = len(traces) + scene.reckoned.get(nid, 0)
    if not pages:
        return
    if nid in (activity.works or activity.invites)(scene):
        cell.invited += pages
        return
    kind = scene.private[nid].kind
    cell.touched[kind] = cell.touched.get(kind, 0) + pages
    for service in sorted(service for services in traces.values() for service in services):
        cell.services[service] = cell.services.get(service, 0) + 1
    if traces and not cell.trip:
        cell.trip = _trip(scene, min(traces), came=True)


def _trip(scene: Scene, pfn: int, came: bool) -> list[str]:
    """The story of a page that leaked."""
    story = scene.kernel.memory.story
    assert story is not None
    if came:
        events = story.of_frame(pfn)
    else:
        events = [e for e in story.events if pfn in (e.pfn, e.old_pfn)]
    return [str(event) for event in events[-TRIP_LINES_MAX:]]
