"""The audit on a machine that is at work: every workload of a configuration runs, and the matrix must still hold.

Under each design the run goes to its middle, with page conservation checked after every epoch: each frame free or
used by exactly one, all counters equal to a recount, what devices store equal to what hosts have on their nodes.
From there each activity of the audit runs once on the first host, in the state that the run is in
(loaded_scene.py), is judged as on an idle machine (matrix.py), and the run goes on for some epochs, checked as
before. Beside that the whole run is watched (watch.py): what its own workloads and kernel threads put onto
private nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from privmem.cluster.assembly import make_plan
from privmem.cluster.audit.activities import Activity
from privmem.cluster.audit.catalogue import ACTIVITIES
from privmem.cluster.audit.loaded_scene import LoadedScene
from privmem.cluster.audit.machine import AuditMachine, Scene, machine_of
from privmem.cluster.audit.matrix import Cell, audit_cell, judge, letters_of
from privmem.cluster.audit.watch import Seen, Watch
from privmem.cluster.config.models import Config
from privmem.cluster.engine import Engine
from privmem.cluster.errors import InvariantError
from privmem.cluster.plan import HOST, Plan
from privmem.cluster.runtime.base import DEFAULT_BUILD
from privmem.cluster.runtime.inline import InlineRuntime
from privmem.nodeagent.device.device import Device
from privmem.nodeagent.host.host import Host
from privmem.nodeagent.host.layout import PG_ALLOCATED, PG_HELD
from privmem.nodeagent.host.memory import Node
from privmem.nodeagent.host.oom import ADJ_MIN
from privmem.scheduler.abi import PAGE_SIZE

#: Epochs that the run goes on for after an activity.
EPOCHS_AFTER = 2
#: Rows that unplug nodes: on an idle machine only the last of them finds pages there.
_UNPLUG = ("hotplug's per-node structures", "stale bind, node id reused", "hot-unplug of P")


@dataclass(slots=True)
class LoadedCell:
    """One activity under one design, on the idle machine and on the loaded one."""

    idle: Cell
    loaded: Cell
    #: Nodes that had no room for an application of their owner, so that they took no part.
    crowded: list[str]
    #: Device classes whose pages a hot-unplug moves away on the idle machine, if this activity unplugs.
    unplugged: list[str]
    #: Where pages leak under load and not on the idle machine: the same with nothing running, but ordinary memory
    #: filled to its watermarks by one process.
    full: Cell | None = None

    @property
    def opened(self) -> bool:
        """Whether pages leak under load where an idle machine leaks none, even a full one: then the matrix does not
        hold.
        """
        return bool(self.more) and not self.idle.leaks and not (self.full and self.full.leaks)

    @property
    def more(self) -> list[str]:
        """Leaks that only the loaded machine shows."""
        known = [*_leaks(self.idle), *(f"{sign}{kind}" for kind in self.unplugged for sign in "-~")]
        return [leak for leak in _leaks(self.loaded) if leak not in known]

    @property
    def fewer(self) -> list[str]:
        """Leaks of the idle machine that the loaded one does not show, where the node took part."""
        gone = [leak for leak in _leaks(self.idle) if leak not in _leaks(self.loaded)]
        return [leak for leak in gone if leak[1:] not in self.crowded and not self.loaded.not_run]

    def plain(self) -> dict[str, Any]:
        """For --json."""
        return {
            "idle": self.idle.plain(),
            "loaded": self.loaded.plain(),
            "crowded": self.crowded,
            "full": self.full.plain() if self.full else None,
            "opened": self.opened,
            "more": self.more,
            "fewer": self.fewer,
        }


def _leaks(cell: Cell) -> list[str]:
    """What leaked: landed (+), left (-) or was worked on in place (~), and the device class."""
    by_sign = (("+", cell.landed), ("-", cell.left), ("~", cell.touched))
    return [f"{sign}{kind}" for sign, kinds in by_sign for kind in kinds]


@dataclass(slots=True)
class LoadedAudit:
    """One design's."""

    design: str
    #: A letter for each device class of the machine.
    letters: dict[str, str]
    cells: list[LoadedCell]
    seen: list[Seen]
    #: Epochs after which all pages were accounted for, in the run and after activities.
    epochs: int
    after: int
    #: Frames of private nodes that were looked at, and pages that the design itself calls leaks in the plain run.
    frames: int
    pgleak: int
    #: Processes killed for want of memory in the plain run.
    killed: int

    def plain(self) -> dict[str, Any]:
        """For --json."""
        return {
            "design": self.design,
            "cells": [cell.plain() for cell in self.cells],
            "seen": [row.plain() for row in self.seen],
            "epochs_checked": self.epochs,
            "epochs_checked_after_activities": self.after,
            "frames_looked_at": self.frames,
            "pgleak": self.pgleak,
            "killed": self.killed,
        }


class LoadedRun:
    """A run of a plan in this process, epoch by epoch, with all pages accounted for after each."""

    def __init__(self, plan: Plan, snapshot: dict[str, Any] | None = None) -> None:
        self.plan = plan
        self.runtime = InlineRuntime()
        self.runtime.start(plan, DEFAULT_BUILD)
        self.engine = Engine(plan, self.runtime)
        if snapshot is not None:
            self.engine.restore(snapshot)

    @property
    def hosts(self) -> list[Host]:
        """By name."""
        found = [seat.participant for _, seat in sorted(self.runtime.seats.items())]
        return [host for host in found if isinstance(host, Host)]

    def host(self, name: str) -> Host:
        """One of them."""
        return next(host for host in self.hosts if host.name == name)

    def epoch(self) -> None:
        """Run one, and check."""
        self.engine.run_epoch()
        self.runtime.validate()
        self._pages_agree()

    def _pages_agree(self) -> None:
        """What hosts have on the nodes of a storing device is what it stores: no page is lost or doubled."""
        contents: dict[str, int] = {}
        for host in self.hosts:
            for node in host.memory.nodes.values():
                pages = _contents_on(host, node) if node.spec.stores else 0
                contents[node.spec.device] = contents.get(node.spec.device, 0) + pages
        for name, seat in sorted(self.runtime.seats.items()):
            device = seat.participant
            if isinstance(device, Device) and device.spec["stores"]:
                stored = device.summary()["stored_pages"]
                if stored != contents[name]:
                    raise InvariantError(f"{name} stores {stored} pages, hosts have {contents[name]} there")


def _contents_on(host: Host, node: Node) -> int:
    """Pages of a node that hold something: all in use but those that the kernel or a driver took for itself."""
    flags = host.memory.frames.flags[node.start_pfn : node.start_pfn + node.spec.span_pages]
    contents = int(np.count_nonzero(flags & np.uint16(PG_ALLOCATED | PG_HELD) == PG_ALLOCATED))
    return contents + sum(host.memory.frames.nid_of(pfn) == node.nid for pfn in host.memory.high_order.pins)


def audit_under_load(
    config_of: Callable[[str], Config], designs: Sequence[str], only: str = ""
) -> list[LoadedAudit]:
    """Every activity (or those whose name holds `only`) under every design; `config_of` loads the configuration
    with a design. Raises InvariantError when a page is lost, doubled or miscounted.
    """
    return [_audit_design(config_of(design), design, only) for design in designs]


def _audit_design(config: Config, design: str, only: str) -> LoadedAudit:
    chosen = [activity for activity in ACTIVITIES if only in activity.name]
    machine = machine_of(config)
    plan = make_plan(config)
    watch = Watch({node.nid: node.wish for node in machine.private})
    run = LoadedRun(plan)
    middle = _to_the_middle(run, watch)
    middles = {"": (plan, middle)}
    cells = []
    after = 0
    for activity in chosen:
        if activity.zone not in middles:
            zoned = _with_zone(plan, activity.zone)
            middles[activity.zone] = (zoned, _to_the_middle(LoadedRun(zoned)))
        cell, epochs = _cell(machine, design, activity, *middles[activity.zone])
        cells.append(cell)
        after += epochs
    while not run.engine.done:
        run.epoch()
        watch.look(run.hosts)
    leaks = sum(host.memory.vmstat.count["pgleak"] for host in run.hosts)
    killed = sum(host.memory.vmstat.count["oom_kill"] for host in run.hosts)
    seen = [row for _, row in sorted(watch.seen.items())]
    letters = letters_of(machine)
    return LoadedAudit(design, letters, cells, seen, watch.epochs, after, watch.frames, leaks, killed)


def _with_zone(plan: Plan, zone: str) -> Plan:
    """The plan with all private memory in a zone."""
    entries = []
    for entry in plan.participants:
        if entry.kind == HOST:
            topology = dict(entry.spec["topology"])
            topology["nodes"] = [
                node | {"zone": zone} if node["private"] else node for node in topology["nodes"]
            ]
            entry = replace(entry, spec=entry.spec | {"topology": topology})
        entries.append(entry)
    return replace(plan, participants=tuple(entries))


def _to_the_middle(run: LoadedRun, watch: Watch | None = None) -> dict[str, Any]:
    """Run until half of the run's time is over; a snapshot."""
    while run.engine.progress.virtual_ns < run.plan.duration_ns // 2 and not run.engine.done:
        run.epoch()
        if watch is not None:
            watch.look(run.hosts)
    return run.engine.snapshot()


def _cell(
    machine: AuditMachine, design: str, activity: Activity, plan: Plan, middle: dict[str, Any]
) -> tuple[LoadedCell, int]:
    """An activity on the machine as it is in the middle of its run, and how many epochs went well after it."""
    run = LoadedRun(plan, middle)
    first = next(entry.name for entry in plan.participants if entry.kind == HOST)
    scene = LoadedScene(
        machine,
        run.host(first),
        demotion=activity.demotion,
        balancing=activity.balancing,
        unplugs=activity.name in _UNPLUG,
    )
    loaded = Cell(activity.name, design)
    crowded = [node.kind for node in machine.private if node.nid not in scene.private]
    if scene.private:
        scene.settle()
        judge(scene, activity, loaded)
    else:
        loaded.not_run = "no private node has room for an application"
    scene.end()
    epochs = 0
    while epochs < EPOCHS_AFTER and not run.engine.done:
        run.epoch()
        epochs += 1
    unplugged: list[str] = []
    if activity.name in _UNPLUG:
        unplug = next(other for other in ACTIVITIES if other.name == _UNPLUG[-1])
        unplugged = sorted(audit_cell(machine, design, unplug).left)
    cell = LoadedCell(audit_cell(machine, design, activity), loaded, crowded, unplugged)
    if cell.opened:
        cell.full = _full_cell(machine, design, activity)
    return cell, epochs


def _full_cell(machine: AuditMachine, design: str, activity: Activity) -> Cell:
    """An activity on an idle machine whose ordinary memory somebody has filled."""
    machine = machine.with_zone(activity.zone) if activity.zone else machine
    scene = Scene(machine, design, demotion=activity.demotion, balancing=activity.balancing)
    memory = scene.kernel.memory
    nodes = [memory.nodes[node.nid] for node in machine.public]
    hog = scene.user()
    hog.task.oom_score_adj = ADJ_MIN
    pages = sum(node.free_pages for node in nodes)
    addr = scene.area(hog, pages)
    while any(node.free_pages > node.wmark.low_pages for node in nodes):
        hog.touch(addr, PAGE_SIZE)
        addr += PAGE_SIZE
    scene.settle()
    cell = Cell(activity.name, design)
    judge(scene, activity, cell)
    return cell
