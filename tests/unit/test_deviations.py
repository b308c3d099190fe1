"""The gaps that docs/deviations.md lists as debts: each test asserts that the gap is still there."""

from __future__ import annotations

import errno
import re
from pathlib import Path

from kernel_box import D0, HUGE, VPN, Box, P, hugetlb_mmap

from privmem.cluster.audit import Cell, audit_cell
from privmem.cluster.audit.activities import Activity
from privmem.cluster.audit.machine import Scene
from privmem.cluster.cli.audit import machine_of_file
from privmem.cluster.oracle.machine import Machine
from privmem.cluster.oracle.ops import parse_op
from privmem.nodeagent.device.compression import CompressionEngine
from privmem.nodeagent.host import contig, filemap, hugetlb, khugepaged, syscalls, thp
from privmem.scheduler.abi import PAGE_SIZE

ROOT = Path(__file__).resolve().parents[2]


def test_every_debt_names_a_test_of_this_file_and_every_test_a_debt():
    page = (ROOT / "docs/deviations.md").read_text()
    named = set(re.findall(r"debt, `test_deviations\.py::(test_\w+)`", page))
    here = {name for name in globals() if name.startswith("test_")} - {
        "test_every_debt_names_a_test_of_this_file_and_every_test_a_debt"
    }
    assert named == here
    assert page.count("debt, `") == len(re.findall(r"\| debt", page))


def test_read_fault_allocates(rack, stream):
    r = rack([stream(3, [(0, False), (1, False), (2, True)])])
    r.run()
    assert r.nodes_of() == [0, 0, 0]  # Linux: the first two on no node


def test_one_zone_a_node(rack, stream):
    r = rack([stream(1, [(0, True)])])
    assert {type(n.buddy).__name__ for n in r.memory.nodes.values()} == {"Buddy"}
    assert not hasattr(r.memory.nodes[0], "zones")


def test_hot_threshold_is_fixed(rack, stream):
    r = rack([stream(1, [(0, True)])], numa_balancing=2)
    before = r.memory.numa_balancing.hot_threshold_ns
    r.run()
    assert r.memory.numa_balancing.hot_threshold_ns == before


def test_hot_reads_stay_compressed(rack, stream):
    fill = [(page, True) for page in range(900)]
    r = rack([stream(900, fill)])
    r.run()
    compressed = [page for page, nid in enumerate(r.nodes_of()) if nid == 2]
    again = rack([stream(900, fill + [(page, False) for page in compressed] * 50)], numa_balancing=2)
    again.run()
    assert [again.nodes_of()[page] for page in compressed].count(2) > len(compressed) // 2


def test_one_page_an_access(rack, stream):
    from privmem.nodeagent.host import syscalls

    r = rack([stream(1, [(0, True)])])
    task = r.host.programs[0].task
    holder = r.memory.page_cache.create_file("file", 16)
    syscalls.mmap_object(r.memory, task, 1 << 30, 16, holder, private=False)
    assert filemap.read_pages(r.memory, task, holder, 0, 1) == 1
    assert r.memory.lru_sizes(0)[2:] in ([1, 0], [0, 1])  # Linux: readahead brings more


def test_tables_of_a_compressed_device_take_no_memory():
    engine = CompressionEngine({"codec": "lz4", "level": None, "block": 4096, "granule": 64})
    assert (
        engine.granules_max * engine.granule_bytes == 4096
    )  # a real expander needs room for its links as well


def test_one_rate_limit_a_host(rack, stream):
    r = rack([stream(1, [(0, True)])])
    assert isinstance(r.memory.rate_window_ns, int)
    assert not hasattr(r.memory.nodes[0], "rate_window_ns")


def test_hotplug_splits_huge_pages():
    box = Box()
    box.map(HUGE, huge=True)
    assert box.bind(P, HUGE) == 0
    assert box.touch(HUGE) == 0
    assert box.kernel.offline(P) == 0
    assert set(box.nids(HUGE)) == {D0}
    assert thp.anon_huge_pages(box.memory, box.task) == 0  # Linux: 512


def test_no_huge_pages_of_shared_memory():
    box = Box()
    box.memory.high_order.thp.enabled = "always"
    assert syscalls.mmap_shared(box.memory, box.task, VPN, HUGE) == 0
    assert box.touch(1) == 0
    assert khugepaged.madvise_collapse(box.memory, box.task, VPN, HUGE) == -errno.EINVAL  # Linux: 0


def test_pool_pages_stay_in_a_contiguous_range():
    box = Box()
    hugetlb.write_nr_hugepages(box.memory, 1, nid=D0)
    assert hugetlb_mmap(box, HUGE) == 0
    assert box.touch(1) == 0
    # Linux: 0, the page moved
    assert contig.alloc_contig_range(box.memory, box.pfn(), HUGE, "tracer") == -errno.EBUSY


def test_unlocked_pages_are_reclaimed_at_once():
    """As a real Linux was asked, which answered `ptes 0*11,1*1,0*4`."""
    machine = Machine(settings={"swap": "ram", "slow_nodes": 2, "demotion_enabled": True})
    ops = ("cpu 0", "mmap 0 16 pa", "mlock 0 6 7 1", "mlock 0 11 1 0", "munlock 0 7 2", "munlock 0 0 16")
    for op in (*ops, "demotion off", "reclaim 1000"):
        machine.run(parse_op(op))
    assert machine.run(parse_op("ptes 0 0 16")) == "ptes 0*11,2*1,0*4"


def test_the_audit_sees_only_what_stays():
    machine = machine_of_file(ROOT / "configs/machines/four_private.yaml", [])

    def cell(undone: bool) -> Cell:
        def lock(scene: Scene, _notes: list[str]) -> None:
            process, addr = scene.moved_in(3, 4)
            scene.begin()
            process.mlock(addr, 4 * PAGE_SIZE)
            if undone:
                process.munlock(addr, 4 * PAGE_SIZE)

        return audit_cell(machine, "caps", Activity("lock", "", lock))

    assert cell(undone=False).touched == {"nic": 4}
    assert cell(undone=True).touched == {}  # four pages were taken off the lists all the same
