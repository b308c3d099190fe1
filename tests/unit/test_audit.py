"""The audit finds leaks by running the emulated kernel: a check that a design forgets shows up as a count."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from privmem.cluster.audit import AuditMachine, Cell, audit, audit_cell
from privmem.cluster.audit.activities import ACTIVITIES
from privmem.nodeagent.host.kernel import NodeBoot
from privmem.scheduler import isolation
from privmem.scheduler.abi import Feature
from privmem.scheduler.isolation import Service, default_designs, get_design
from privmem.scheduler.topology import HostTopology, NodeTopology
from privmem.scheduler.zonelist import AllocRequest, Zonelist, Zonelists

FIVE = [design.name for design in default_designs()]
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
    """A design with one check forgotten; all else is the design's."""

    def __init__(self, base: str, service: Service | None, everywhere: bool = False) -> None:
        self._base = get_design(base)
        self._service = service
        self._everywhere = everywhere

    def __getattr__(self, name: str) -> Any:
        return getattr(self._base, name)

    def allows(self, service: Service, node: NodeTopology) -> bool:
        return service is self._service or self._base.allows(service, node)

    def candidates(
        self, topology: HostTopology, lists: Zonelists, request: AllocRequest, mems_allowed: int | None
    ) -> Zonelist:
        found = self._base.candidates(topology, lists, request, mems_allowed)
        if not self._everywhere or request.nodemask is not None:
            return found
        if request.this_node:
            return found or (request.nid,)
        private = [nid for nid in range(topology.private.bit_length()) if topology.private >> nid & 1]
        return (*found, *(nid for nid in private if nid not in found))


def cell_of(design: str, activity: str, pages: int = 256) -> Cell:
    row = next(a for a in ACTIVITIES if a.name == activity)
    return audit_cell(machine(pages), design, row)


def planted_cell(
    monkeypatch: pytest.MonkeyPatch, base: str, activity: str, service: Service | None, pages: int = 256
) -> tuple[Cell, Cell]:
    """The cell of the design as it is, and with the check forgotten."""
    clean = cell_of(base, activity, pages)
    monkeypatch.setitem(isolation.DESIGNS, base, Planted(base, service, everywhere=service is None))
    return clean, cell_of(base, activity, pages)


#: What is forgotten (none: the lists let everything through), the activity that shows it, and its cell then.
PLANTS = [
    (None, "page fault, no policy", "+104 nic"),
    (None, "kmalloc_node(P)", "+4 nic +4 slow"),
    (None, "alloc_pages_node(P), THISNODE", "+8 nic +8 slow"),
    (Service.NUMA_BALANCING, "NUMA balancing", "-32 nic -32 slow"),
    (Service.KSM, "KSM", "-31 nic -32 slow"),
    (Service.DAMON, "DAMON", "-32 nic -32 slow"),
    (Service.USER_MOVE, "user moves off P", "-32 nic -32 slow"),
    (Service.PIN_MIGRATE, "long-term pin", "-32 nic -32 slow"),
    (Service.HOTUNPLUG, "hot-unplug of P", "-32 nic -32 slow"),
    (Service.COMPACTION, "compaction", "-32 nic"),
    (Service.MADVISE, "MADV_PAGEOUT", "-32 nic"),
    (Service.RECLAIM, "reclaim of P's pages", "-32 nic"),
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


def test_pages_pinned_in_place_did_not_go_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    _, planted = planted_cell(monkeypatch, "caps", "long-term pin", Service.LONGTERM_PIN)
    assert (planted.text(), planted.notes) == ("0", ["pinned", "pinned"])


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
