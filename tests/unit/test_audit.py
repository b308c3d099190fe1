"""The audit finds leaks by running the emulated kernel: a check that a design forgets shows up as a count."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from privmem.cluster.audit import AuditMachine, Cell, audit, audit_cell
from privmem.cluster.audit.catalogue import ACTIVITIES
from privmem.cluster.audit.machine import Scene
from privmem.cluster.audit.matrix import judge
from privmem.cluster.cli import main
from privmem.nodeagent.host.kernel import Kernel, NodeBoot
from privmem.scheduler import isolation
from privmem.scheduler.abi import Feature, Reason
from privmem.scheduler.cpuset import CpusetNodes
from privmem.scheduler.isolation import Service, default_designs, get_design
from privmem.scheduler.mempolicy import PolicyNodes
from privmem.scheduler.topology import HostTopology, NodeTopology
from privmem.scheduler.zonelist import AllocRequest, Zonelist, Zonelists

FIVE = [design.name for design in default_designs()]
ROOT = Path(__file__).resolve().parents[2]
_NEAR, _FAR = 10, 20


def machine(pages: int = 256) -> AuditMachine:
    """Two general nodes; a network accelerator that only its driver uses; slow memory that cold pages go to."""
    nodes = (
        NodeBoot(nid=0, pages=pages, cpus=(0,)),
        NodeBoot(nid=1, pages=pages, cpus=(1,)),
        NodeBoot(nid=2, pages=pages, private=True, wish=Feature.USER_WRITE, kind="nic"),
        NodeBoot(
            nid=3,
            pages=pages,
            private=True,
            wish=Feature.RECLAIM | Feature.DEMOTION | Feature.USER_WRITE,
            kind="slow-distributed",
        ),
    )
    distances = tuple(tuple(_NEAR if a == b else _FAR for b in range(4)) for a in range(4))
    return AuditMachine(nodes, distances)


class Planted:
    """A design with checks forgotten; all else is the design's."""

    def __init__(
        self, base: str, *services: Service, lists: bool = False, names: bool = False, first: bool = False
    ) -> None:
        self._base = get_design(base)
        self._services = services
        #: Whether the lists let everything through, and whether users and cpusets may name every node.
        self._lists = lists or first
        #: Whether private nodes come first in them.
        self._first = first
        self._names = names
        self.scrubs_policies = self._base.scrubs_policies and not names

    def __getattr__(self, name: str) -> Any:
        return getattr(self._base, name)

    def allows(self, service: Service, node: NodeTopology) -> bool:
        return service in self._services or self._base.allows(service, node)

    def policy_nodes(self, topology: HostTopology) -> PolicyNodes:
        if not self._names:
            return self._base.policy_nodes(topology)
        return PolicyNodes(memory=topology.memory, private=topology.private)

    def cpuset_nodes(self, topology: HostTopology) -> CpusetNodes:
        if not self._names:
            return self._base.cpuset_nodes(topology)
        return CpusetNodes(topology.memory, memory=topology.memory)

    def node_states(self, topology: HostTopology) -> dict[str, int]:
        states = self._base.node_states(topology)
        return states | ({"has_memory": topology.memory} if Service.HUGETLB in self._services else {})

    def move_targets(self, topology: HostTopology) -> int:
        return topology.memory if self._names else self._base.move_targets(topology)

    def candidates(
        self, topology: HostTopology, lists: Zonelists, request: AllocRequest, mems_allowed: int | None
    ) -> Zonelist:
        found = self._base.candidates(topology, lists, request, mems_allowed)
        if request.nodemask is not None:
            named = tuple(nid for nid in range(4) if (request.nodemask & topology.memory) >> nid & 1)
            return named if self._names else found
        if not self._lists:
            return found
        private = tuple(nid for nid in range(4) if topology.private >> nid & 1 and nid not in found)
        if request.nid in private and request.this_node and request.reason is not Reason.NETWORK:
            return (request.nid,)
        if self._first:
            return (request.nid, *(nid for nid in (*private, *found) if nid != request.nid))
        own = (request.nid,) if request.nid in private and request.reason is not Reason.NETWORK else ()
        return (*own, *found, *(nid for nid in private if nid not in own))


def cell_of(design: str, activity: str, pages: int = 256) -> Cell:
    row = next(a for a in ACTIVITIES if a.name == activity)
    return audit_cell(machine(pages), design, row)


@cache
def clean_cell_of(design: str, activity: str, pages: int = 256) -> Cell:
    """The cell of the design as it is, run once."""
    return cell_of(design, activity, pages)


def planted_cell(
    monkeypatch: pytest.MonkeyPatch, base: str, activity: str, service: Service | None, pages: int = 256
) -> tuple[Cell, Cell]:
    """The cell of the design as it is, and with the check forgotten."""
    clean = clean_cell_of(base, activity, pages)
    monkeypatch.setitem(
        isolation.DESIGNS, base, Planted(base, *([service] if service else []), lists=service is None)
    )
    return clean, cell_of(base, activity, pages)


#: What is forgotten (none: the lists let everything through), the activity that shows it, and its cell then.
PLANTS = [
    (None, "page fault, no policy", "+104 nic"),
    (None, "kmalloc_node(P)", "+4 nic +4 slow"),
    (None, "alloc_pages_node(P), THISNODE", "+8 nic +8 slow"),
    (Service.NUMA_BALANCING, "NUMA balancing", "-32 nic -32 slow"),
    (Service.KSM, "KSM", "-31 nic -32 slow ~1 nic"),
    (Service.DAMON, "DAMON", "-32 nic -32 slow"),
    (Service.USER_MOVE, "user moves off P", "-32 nic -32 slow"),
    (Service.PIN_MIGRATE, "long-term pin", "-32 nic -32 slow"),
    (Service.HOTUNPLUG, "hot-unplug of P", "-32 nic -32 slow"),
    (Service.COMPACTION, "compaction", "-32 nic"),
    (Service.MADVISE, "MADV_PAGEOUT", "-32 nic"),
    (Service.RECLAIM, "reclaim of P's pages", "-32 nic ~32 nic"),
]


@pytest.mark.parametrize("design", FIVE)
@pytest.mark.parametrize(("forgotten", "activity", "text"), PLANTS, ids=[row[1] for row in PLANTS])
def test_a_forgotten_check_shows_up(
    monkeypatch: pytest.MonkeyPatch, design: str, forgotten: Service | None, activity: str, text: str
) -> None:
    clean, planted = planted_cell(monkeypatch, design, activity, forgotten)
    assert planted.text() == text
    assert planted.trip, "a leaked page has a trip"
    open_anyway = {
        "no-fallback": {"kmalloc_node(P)", "alloc_pages_node(P), THISNODE"},
        "private-zonelist": {"hot-unplug of P"},
        "private-zonelist-per-node": {"hot-unplug of P"},
    }
    assert (clean.text() == text) == (activity in open_anyway.get(design, set()))


def test_cells_of_a_design_are_what_its_lists_give() -> None:
    cells = audit(machine(), FIVE, "kmalloc_node(P)")
    assert {cell.design: cell.text() for cell in cells} == {
        "gfp-private": "0",
        "no-fallback": "+4 nic +4 slow",
        "caps": "0",
        "private-zonelist": "0",
        "private-zonelist-per-node": "0",
    }


def test_the_trip_of_a_leaked_page_names_request_list_and_rule() -> None:
    trip = "\n".join(cell_of("no-fallback", "kmalloc_node(P)").trip)
    assert "a slab page near node 2, with THISNODE" in trip
    assert "no-fallback zonelist of node 2 (node 2), opened by naming the node" in trip


def test_an_activity_that_cannot_run_says_so() -> None:
    cell = cell_of("caps", "khugepaged")
    assert (cell.text(), cell.not_run) == ("n/a", "no private node has room for a huge page")


def test_a_range_that_displaces_its_occupants_counts_though_the_same_frames_are_in_use() -> None:
    cell = cell_of("no-fallback", "walkers of online nodes, tracer")
    assert cell.landed == {"nic": 17, "slow-distributed": 17}  # one page of the walker, 16 of the tracer
    assert cell.left == {}  # the occupants found room on their node


def test_pages_pinned_in_place_did_not_go_anywhere_but_show(monkeypatch: pytest.MonkeyPatch) -> None:
    _, planted = planted_cell(monkeypatch, "caps", "long-term pin", Service.LONGTERM_PIN)
    assert (planted.text(), planted.notes) == ("~32 nic ~32 slow", ["pinned", "pinned"])


@pytest.mark.parametrize(("design", "landed"), [("gfp-private", 16), ("no-fallback", 16), ("caps", 0)])
def test_a_bind_to_one_node_alone_outlives_its_device_where_nobody_scrubs(design: str, landed: int) -> None:
    base = machine()
    opted = tuple(replace(n, wish=n.wish | Feature.USER_NUMA) if n.nid == 2 else n for n in base.nodes)
    row = next(a for a in ACTIVITIES if a.name == "stale bind, node id reused")
    assert audit_cell(replace(base, nodes=opted), design, row).landed == ({"nic": landed} if landed else {})


#: Where private memory is on lists of its own, these refuse the huge page though the service forgot to ask.
BEHIND_LISTS = {"private-zonelist", "private-zonelist-per-node"}


@pytest.mark.parametrize("design", FIVE)
@pytest.mark.parametrize(
    ("forgotten", "activity"),
    [(Service.KHUGEPAGED, "khugepaged"), (Service.COLLAPSE, "MADV_COLLAPSE")],
)
def test_a_forgotten_check_of_collapse_shows_up(
    monkeypatch: pytest.MonkeyPatch, design: str, forgotten: Service, activity: str
) -> None:
    clean, planted = planted_cell(monkeypatch, design, activity, forgotten, pages=1024)
    assert clean.text() == "0"
    assert planted.text() == ("0" if design in BEHIND_LISTS else "+512 nic +512 slow -64 nic -64 slow")


#: Row -> what is forgotten under it: services that ask nobody, lists, names (policies, cpusets, moves, scrubbing).
FORGOTTEN: dict[str, dict[str, Any]] = {
    "page fault, no policy": {"lists": True},
    "alloc_pages_node(P)": {"lists": True},
    "alloc_pages_node(P), THISNODE": {"lists": True},
    "owner's request, node preferred only": {"first": True},
    "kmalloc_node(P)": {"lists": True},
    "walkers of possible nodes": {"lists": True},
    "walkers of online nodes, tracer": {"lists": True},
    "contiguous range by address, stranger": {"lists": True},
    "contiguous search naming P": {"lists": True},
    "huge page pool of node P": {"lists": True, "services": (Service.HUGETLB,)},
    "global huge page pool": {"lists": True, "services": (Service.HUGETLB,)},
    "bind naming P": {"names": True},
    "interleave naming P": {"names": True, "lists": True},
    "preferred naming P": {"names": True, "lists": True},
    "cpuset rebind by position": {"names": True},
    "stale bind, node id reused": {"names": True},
    "page cache by read(2), task bound to P": {"names": True},
    "page cache left by a bound mapping": {"names": True, "services": (Service.MAPPED_FILE,)},
    "page tables of a task bound to P": {"names": True},
    "reclaim of P's pages": {"services": (Service.RECLAIM,)},
    "MADV_PAGEOUT": {"services": (Service.MADVISE,)},
    "demotion into P, and out of it": {"lists": True, "services": (Service.DEMOTION_TARGET, Service.TIER)},
    "NUMA balancing": {"services": (Service.NUMA_BALANCING,)},
    "promotion by hint faults": {"services": (Service.NUMA_BALANCING,)},
    "compaction": {"services": (Service.COMPACTION,)},
    "KSM": {"services": (Service.KSM,)},
    "khugepaged": {"lists": True, "names": True, "services": (Service.KHUGEPAGED,)},
    "MADV_COLLAPSE": {"lists": True, "names": True, "services": (Service.COLLAPSE,)},
    "DAMON": {"services": (Service.DAMON,)},
    "long-term pin": {"services": (Service.LONGTERM_PIN,)},
    "user moves onto P": {"names": True, "lists": True, "services": (Service.USER_MOVE,)},
    "user moves off P": {"services": (Service.USER_MOVE,)},
    "cpuset loses P": {"names": True, "services": (Service.USER_MOVE,)},
    "hot-unplug of P": {"services": (Service.HOTUNPLUG,)},
    "message buffers of one device": {"lists": True},
    "mlock": {"services": (Service.MLOCK,)},
    "MADV_COLD": {"services": (Service.MADVISE,)},
    "swap round trip": {"services": (Service.MADVISE,)},
    "swap readahead under a bind": {"names": True},
    "OOM killer's account of P": {"services": (Service.OOM_MEMORY,)},
}
#: Rows about which a design has no check, so that each page of the plant lands without it.
OPEN_ANYWAY = {
    "no-fallback": {
        "alloc_pages_node(P), THISNODE",
        "kmalloc_node(P)",
        "walkers of possible nodes",
        "walkers of online nodes, tracer",
        "contiguous range by address, stranger",
        "huge page pool of node P",
        "global huge page pool",
        "mlock",
    },
    "caps": {"owner's request, node preferred only", "mlock"},
    "private-zonelist": {"owner's request, node preferred only", "mlock", "hot-unplug of P"},
    "private-zonelist-per-node": {"mlock", "hot-unplug of P"},
}
#: What is reckoned there has no page.
NO_PAGE = {"OOM killer's account of P"}
HUGE_ROWS = {"huge page pool of node P", "global huge page pool", "khugepaged", "MADV_COLLAPSE"}


@pytest.mark.parametrize("design", FIVE)
@pytest.mark.parametrize("activity", FORGOTTEN)
def test_every_row_shows_a_forgotten_check(
    monkeypatch: pytest.MonkeyPatch, design: str, activity: str
) -> None:
    what = dict(FORGOTTEN[activity])
    pages = 1024 if activity in HUGE_ROWS else 256
    clean = clean_cell_of(design, activity, pages)
    monkeypatch.setitem(isolation.DESIGNS, design, Planted(design, *what.pop("services", ()), **what))
    planted = cell_of(design, activity, pages)
    if activity in OPEN_ANYWAY.get(design, set()):
        assert clean.leaks > 0, "nobody checks here: nothing that could be forgotten"
    else:
        assert planted.leaks > clean.leaks
        assert planted.trip or activity in NO_PAGE


@pytest.mark.parametrize("design", FIVE)
def test_an_owner_who_is_not_told_of_a_bad_page_shows(monkeypatch: pytest.MonkeyPatch, design: str) -> None:
    assert cell_of(design, "memory failure").text() == "0"
    told = Kernel.memory_failure
    monkeypatch.setattr(Kernel, "memory_failure", lambda kernel, pfn: replace(told(kernel, pfn), told=""))
    assert cell_of(design, "memory failure").text() == "~1 nic ~1 slow"


@pytest.mark.parametrize("design", FIVE)
def test_structures_of_a_node_on_anothers_private_memory_show(design: str) -> None:
    row = next(a for a in ACTIVITIES if a.name == "hotplug's per-node structures")
    scene, cell = Scene(machine().with_zone(row.zone), design), Cell(row.name, design)
    scene.settle()
    scene.kernel.memory.resolver.design = Planted(design, first=True)  # forgotten after the boot
    judge(scene, row, cell)
    assert cell_of(design, row.name).text() == "0"
    assert cell.text() == "+2 slow"


@pytest.mark.parametrize("design", FIVE)
def test_a_pool_of_the_command_line_asks_nobody(design: str) -> None:
    assert cell_of(design, "pool of contiguous memory on P").text() == "+16 nic +16 slow"


def test_every_row_has_a_plant() -> None:
    apart = {"hotplug's per-node structures", "memory failure", "pool of contiguous memory on P"}
    assert set(FORGOTTEN) | apart == {activity.name for activity in ACTIVITIES}


def test_the_page_shows_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs/audit.md").read_text()
    assert main(["audit", str(ROOT / "configs/machines/four_private.yaml")]) == 0
    assert capsys.readouterr().out in page
    assert all(len(line) <= 100 for line in page.split("```")[1].splitlines())


def test_the_page_names_every_row_with_its_claim() -> None:
    claims = (ROOT / "docs/audit.md").read_text().split("## The claims")[1]
    for activity in ACTIVITIES:
        assert f"| {activity.name} |" in claims
