"""What each isolation design answers to huge pages, pools, contiguous ranges, compaction and pins on a private
node.

Each answer comes from running the path; the tables say what the series' versions say.
"""

import errno

import pytest
from kernel_box import D0, HUGE, VPN, Box, P, Q

from privmem.nodeagent.host import compaction, contig, hugetlb, khugepaged, pins, thp
from privmem.nodeagent.host.audit import validate_memory
from privmem.nodeagent.host.drivers.dax_test import DaxTest
from privmem.scheduler.abi import Feature
from privmem.scheduler.isolation import DESIGNS

EVERYTHING = Feature(0x3FFFFF & ~int(Feature.PUBLIC))
V4, NOFB, TASK, A, B, C, F0, F1, F2, F3 = (
    "gfp-private",
    "no-fallback",
    "no-fallback:task",
    "caps:a",
    "caps:b",
    "caps",
    "private-zonelist:F0",
    "private-zonelist",
    "private-zonelist:F2",
    "private-zonelist-per-node",
)
ALL = list(DESIGNS)

all_designs = pytest.mark.parametrize("design", ALL)


def test_no_design_is_forgotten():
    assert {V4, NOFB, TASK, A, B, C, F0, F1, F2, F3} == set(ALL)


def box_of(design, wish=EVERYTHING, **how):
    return Box(design=design, wish=wish, **how)


def on_device(box, nr, at=VPN, nid=P):
    """Pages on a private node by its driver's mapping, which every design has."""
    assert DaxTest(box.kernel, nid).mmap(box.task, at, nr) == 0
    assert box.touch(nr, at) == 0
    assert set(box.nids(nr, at)) == {nid}


@all_designs
def test_a_plain_search_that_names_the_node_never_gets_it(design):
    box = box_of(design)
    first = contig.alloc_contig_pages(box.memory, HUGE, P, 1 << P, "somebody")
    validate_memory(box.memory)
    assert first == -errno.ENOMEM
    first = contig.alloc_contig_pages(box.memory, HUGE, P, None, "somebody")
    assert box.memory.frames.nid_of(first) == D0


@all_designs
def test_a_tracer_with_thisnode_leaks_without_a_flag(design):
    """powerpc's memtrace walks the online nodes and asks each with THISNODE."""
    box = box_of(design)
    first = contig.alloc_contig_pages(box.memory, HUGE, Q, None, "memtrace", this_node=True)
    validate_memory(box.memory)
    assert (first >= 0) == (design == NOFB)
    assert box.count("pgleak") == [HUGE * (design == NOFB)]


@all_designs
def test_the_owner_gets_its_range_and_its_search(design):
    box = box_of(design)
    start = box.memory.nodes[P].start_pfn
    assert contig.alloc_contig_range(box.memory, start, HUGE, "owner", private=True) == 0
    found = contig.alloc_contig_pages(
        box.memory, HUGE, P, 1 << P, "owner", this_node=design == NOFB, private=True
    )
    validate_memory(box.memory)
    assert found == start + HUGE
    assert box.count("pgleak") == [0]


@all_designs
def test_a_range_by_frame_number_of_somebody_else(design):
    box = box_of(design)
    answer = contig.alloc_contig_range(box.memory, box.memory.nodes[P].start_pfn, HUGE, "somebody")
    validate_memory(box.memory)
    assert answer == (0 if design == NOFB else -errno.EINVAL)
    assert box.count("pgleak") == [HUGE * (design == NOFB)]


@all_designs
@pytest.mark.parametrize("wish", [EVERYTHING, Feature.USER_WRITE])
def test_residents_are_displaced_with_the_right_only(design, wish):
    box = box_of(design, wish)
    on_device(box, HUGE)
    start = box.pfn() // HUGE * HUGE
    answer = contig.alloc_contig_range(box.memory, start, HUGE, "owner", private=True)
    validate_memory(box.memory)
    may = wish == EVERYTHING or design in (NOFB, TASK)  # the experiment guards nothing
    assert answer == (0 if may else -errno.EPERM)
    assert set(box.nids(HUGE)) == ({D0} if may else {P})


@all_designs
def test_pools(design):
    """The node's own file and the global one: (opted in, not opted in)."""
    box = box_of(design)
    for nid in (P, Q):
        hugetlb.write_nr_hugepages(box.memory, 1, nid=nid)
    own = [hugetlb.nr_hugepages(box.memory, nid) for nid in (P, Q)]
    box.round_trip()
    leaked = box.count("pgleak")
    expected = {NOFB: [1, 1]} | {d: [1, 0] for d in (A, B, C, F0, F1, F2)}
    assert own == expected.get(design, [0, 0])
    assert leaked == [2 * HUGE * (design == NOFB)]
    box = box_of(design)
    hugetlb.write_nr_hugepages(box.memory, 8)
    validate_memory(box.memory)
    shared = [hugetlb.nr_hugepages(box.memory, nid) > 0 for nid in (P, Q)]
    # N_MEMORY excludes private nodes in v4, caps-a and caps-b; nobody checks anything without a flag.
    assert shared == [design in (NOFB, C, F0, F1, F2), design == NOFB]
    assert hugetlb.nr_hugepages(box.memory) == 8


@all_designs
@pytest.mark.parametrize("wish", [EVERYTHING, Feature.USER_WRITE])
def test_the_compact_file(design, wish):
    box = box_of(design, wish)
    on_device(box, 8)
    assert compaction.compact_node(box.memory, P) == (0 if wish == EVERYTHING else -errno.EINVAL)
    validate_memory(box.memory)


@all_designs
def test_collapsing(design):
    box = box_of(design)
    on_device(box, HUGE)
    box.memory.high_order.thp.enabled = "always"
    assert khugepaged.khugepaged(box.memory, [box.task]) == 0
    answer = khugepaged.madvise_collapse(box.memory, box.task, VPN, HUGE)
    validate_memory(box.memory)
    collapses = design in (B, C)
    assert answer == (0 if collapses else -errno.EINVAL)
    assert thp.anon_huge_pages(box.memory, box.task) == HUGE * collapses
    assert box.nids(HUGE) == [P] * HUGE
    assert box.count("pgleak") == [0]


@all_designs
def test_long_pins(design):
    box = box_of(design)
    on_device(box, 4)
    answer = pins.pin_user_pages(box.memory, box.task, VPN, 4)
    validate_memory(box.memory)
    assert answer == (-errno.ENOMEM if design in (F1, F2, F3) else 4)
    assert box.nids(4) == [P] * 4


@all_designs
def test_long_pins_without_their_bit(design):
    box = box_of(design, EVERYTHING & ~Feature.LONGTERM_PIN)
    on_device(box, 4)
    answer = pins.pin_user_pages(box.memory, box.task, VPN, 4)
    validate_memory(box.memory)
    moved = design == V4  # NP_OPS_MIGRATION lets the page leave first
    assert answer == (4 if moved else -errno.ENOMEM)
    assert box.nids(4) == ([D0] * 4 if moved else [P] * 4)


@all_designs
def test_a_huge_fault_bound_to_the_node_never_spills(design):
    box = box_of(design)
    nr = box.memory.nodes[P].managed_pages
    box.map(nr, huge=True)
    bound = box.bind(P, nr)
    assert bound == (-errno.EINVAL if design == F3 else 0)
    if bound:
        return
    assert box.touch(nr - 100) == 0
    assert set(box.nids(nr - 100)) == {P}
    assert thp.anon_huge_pages(box.memory, box.task) == nr - HUGE
    assert box.count("pgleak") == [0]


@all_designs
def test_a_huge_fault_of_the_default_policy_stays_off(design):
    box = box_of(design)
    nr = 2 * 15 * HUGE
    box.map(nr, huge=True)
    assert box.touch(nr) == 0
    assert {P, Q}.isdisjoint(box.nids(nr))
