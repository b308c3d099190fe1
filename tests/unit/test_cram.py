"""The compressed RAM service of F1 and F3: registration, gate, balloon, trim, placement, hot ring, snapshots."""

import errno

import pytest

from privmem.nodeagent.host.cram import balloon, capacity, gate, hot_ring, placement, registration, trim
from privmem.nodeagent.host.cram.service import (
    CramNode,
    CramService,
    Generation,
    can_carry,
    default_generation,
)
from privmem.nodeagent.host.drivers.cramdax import CramDax, fenced_features
from privmem.nodeagent.host.kernel import Kernel, NodeBoot
from privmem.nodeagent.host.layout import PTE_PFN_SHIFT
from privmem.nodeagent.host.memory import NumaBalancing, Sysctl
from privmem.nodeagent.host.migrate import room_pages
from privmem.nodeagent.host.process import Signalled
from privmem.nodeagent.host.swap import swapon
from privmem.scheduler.abi import PAGE_SIZE, Feature
from privmem.scheduler.isolation import DESIGNS

D, C, E = 0, 1, 2
F1, F3, CAPS = "private-zonelist", "private-zonelist-per-node", "caps"
PAGEOUT = 21


def make(design=F3, pages=4096, near=(20, 30), swap=0, demotion=False):
    kernel = Kernel(
        [
            NodeBoot(D, 4096, cpus=(0,)),
            NodeBoot(C, pages, kind="compressed-ram", by_device=True),
            NodeBoot(E, pages, kind="compressed-ram", by_device=True),
        ],
        ((10, *near), (near[0], 10, 40), (near[1], 40, 10)),
        design,
        Sysctl(NumaBalancing(mode=0), demotion_enabled=demotion),
    )
    if swap:
        swapon(kernel.memory, swap, synchronous=False, page_cluster=0)
    return kernel


def plugged(design=F3, nid=C, ratio=1000, **machine):
    kernel = make(design, **machine)
    device = CramDax(kernel, nid, ratio)
    assert device.write("state", "online") == 0
    return kernel, device


def filled(kernel, nr_pages):
    process = kernel.spawn()
    addr = process.mmap(nr_pages * PAGE_SIZE)
    process.touch(addr, nr_pages * PAGE_SIZE, write=True)
    return process, addr


def placed(kernel, nr_pages):
    process, addr = filled(kernel, nr_pages)
    process.madvise(addr, nr_pages * PAGE_SIZE, PAGEOUT)
    return process, addr


def on(kernel, process, addr, nr_pages):
    where = process.where(addr, nr_pages * PAGE_SIZE)
    return {nid: where.count(nid) for nid in sorted({n for n in where if n is not None})}


def test_generations():
    labels = {design.label: str(default_generation(design.label)) for design in DESIGNS.values()}
    assert labels == {
        "v4": "v4",
        "nofb": "F1",
        "caps-a": "F1",
        "caps-b": "F1",
        "caps-c": "F1",
        "F0": "F1",
        "F1": "F1",
        "F2": "F1",
        "F3": "F3",
    }
    assert can_carry("F1", Generation.F3) and can_carry("v4", Generation.V4)
    assert not can_carry("F3", Generation.F1) and not can_carry("v4", Generation.F3)


# -- registration


def test_register_and_unregister():
    kernel = make()
    plug = kernel.hotplug
    ranges = [(0, 1024), (1024, 3072)]
    assert registration.cram_register(plug, C, ranges, Feature.RECLAIM, "x") == 0
    assert kernel.memory.cram.nodes[C].total_pages == 4096
    assert kernel.memory.nodes[C].fenced and kernel.memory.nodes[C].private
    assert registration.cram_register(plug, C, ranges, Feature.RECLAIM, "x") == -errno.EBUSY
    assert registration.cram_unregister(plug, C, [(0, 4096)]) == -errno.EINVAL
    assert registration.cram_unregister(plug, E) == -errno.ENODEV
    assert registration.cram_unregister(plug, 9) == -errno.EINVAL
    assert registration.cram_unregister(plug, C, ranges[::-1]) == 0
    assert (kernel.memory.cram.nodes, plug.claims, plug.state(C)) == ({}, {}, "unplugged")
    kernel.validate()


@pytest.mark.parametrize(
    ("design", "features", "error"),
    [
        (F3, Feature.RECLAIM, 0),
        (F3, Feature.RECLAIM | Feature.COMPACTION, 0),
        (F3, Feature.NONE, errno.EINVAL),
        (F3, Feature.RECLAIM | Feature.USER_WRITE, errno.EINVAL),
        (F3, Feature.RECLAIM | Feature.PUBLIC, errno.EINVAL),
        (F3, Feature.RECLAIM | Feature.DEMOTION, errno.EINVAL),
        (F1, Feature.RECLAIM | Feature.DEMOTION, 0),
        (F1, Feature.RECLAIM, errno.EINVAL),
        (CAPS, Feature.RECLAIM | Feature.DEMOTION, 0),
    ],
)
def test_features(design, features, error):
    kernel = make(design)
    assert registration.cram_register(kernel.hotplug, C, [(0, 4096)], features, "x") == -error


def test_unloading_and_rollback():
    kernel = make()
    kernel.memory.cram.unloading = True
    assert registration.cram_register(kernel.hotplug, C, [(0, 512)], Feature.RECLAIM, "x") == -errno.EBUSY
    kernel.memory.cram.unloading = False
    overlapping = [(0, 1024), (512, 1024)]
    assert registration.cram_register(kernel.hotplug, C, overlapping, Feature.RECLAIM, "x") == -errno.EEXIST
    assert (kernel.hotplug.state(C), kernel.hotplug.claims, kernel.memory.cram.nodes) == ("unplugged", {}, {})


def test_a_busy_node_stays():
    kernel, _ = plugged()
    kernel.owners.alloc("x", C)
    capacity.set_target(kernel.memory, C, 512)
    kernel.cram_worker()
    assert registration.cram_unregister(kernel.hotplug, C) == -errno.EBUSY
    assert kernel.memory.cram.nodes[C].balloon_pages == 512
    assert not kernel.memory.nodes[C].no_alloc_owner
    process, addr = placed(kernel, 16)
    assert on(kernel, process, addr, 16) == {C: 16}
    kernel.validate()


# -- placement


@pytest.mark.parametrize("design", [CAPS, F1, F3])
def test_pageout_lands_and_a_store_promotes(design):
    kernel, _ = plugged(design)
    process, addr = placed(kernel, 64)
    assert on(kernel, process, addr, 64) == {C: 64}
    process.touch(addr, 4 * PAGE_SIZE, write=True)
    assert on(kernel, process, addr, 64) == {D: 4, C: 60}
    assert kernel.memory.vmstat.count["pgleak"] == 0
    kernel.validate()


def test_nearest_then_first():
    for near, expected in (((20, 30), C), ((30, 20), E), ((25, 25), E)):
        kernel, _ = plugged(near=near, nid=E)
        assert CramDax(kernel, C).write("state", "online") == 0
        process, addr = placed(kernel, 8)
        assert on(kernel, process, addr, 8) == {expected: 8}


def test_reclaim_comes_here_in_f3_without_demotion():
    kernel, _ = plugged()
    process, addr = filled(kernel, 3000)
    kernel.memory.nodes[D].wmark = type(kernel.memory.nodes[D].wmark)(1500, 1500, 1500, 1500)
    kernel.kswapd(D, wake=True)
    assert kernel.memory.nodes[D].free_pages > 1500
    assert on(kernel, process, addr, 3000)[C] > 300
    assert kernel.memory.vmstat.count["pswpout"] == 0
    kernel.validate()


def test_a_full_node_takes_no_more():
    kernel, _ = plugged(pages=512)
    process, addr = placed(kernel, 600)
    low = kernel.memory.nodes[C].wmark.min_pages
    assert on(kernel, process, addr, 600) == {D: 600 - 512 + low, C: 512 - low}
    assert kernel.memory.cram.nodes[C].refused_pages == 600 - 512 + low


def test_only_swap_backed_pages():
    kernel, _ = plugged()
    process, addr = filled(kernel, 4)
    process.madvise(addr, 2 * PAGE_SIZE, 8)
    process.madvise(addr, 4 * PAGE_SIZE, PAGEOUT)
    assert on(kernel, process, addr, 4) == {C: 2}
    resident = int(kernel.memory.page_table.pte[process.task.mm.vmas[0].slot + 3]) >> PTE_PFN_SHIFT
    assert not placement.eligible(kernel.memory, resident)


# -- the gate


def test_one_owner_of_the_mark():
    kernel, _device = plugged(swap=256)
    memory = kernel.memory
    assert gate.set_no_alloc(memory, C, True, "one") == 0
    assert gate.set_no_alloc(memory, C, True, "two") == -errno.EBUSY
    assert gate.set_no_alloc(memory, C, False, "two") == -errno.EBUSY
    process, addr = placed(kernel, 8)
    assert on(kernel, process, addr, 8) == {}
    assert gate.set_no_alloc(memory, C, False, "one") == 0
    assert gate.set_no_alloc(memory, C, True, "two") == 0
    assert gate.set_no_alloc(memory, E, True) == -errno.ENODEV


def test_any_word_closes_it():
    kernel, _ = plugged()
    memory, cram = kernel.memory, kernel.memory.cram.nodes[C]
    gate.set_test_block(memory, C, True)
    gate.set_no_alloc(memory, C, True)
    gate.set_test_block(memory, C, False)
    assert memory.nodes[C].no_alloc_owner and cram.gate.closed
    gate.set_no_alloc(memory, C, False)
    assert not memory.nodes[C].no_alloc_owner and not cram.gate.closed


# -- the balloon


def test_blocks_are_counted_out_of_the_node():
    kernel, device = plugged()
    assert device.write("balloon_target", "1025") == 0
    kernel.cram_worker()
    node = kernel.memory.nodes[C]
    assert (node.balloon_pages, node.usable_pages, kernel.meminfo(C)["MemTotal"]) == (1536, 2560, 10240)
    assert kernel.memory.vmstat.count["nr_balloon_pages"] == 1536
    assert device.read("trim_count") == "1536"
    assert device.write("balloon_target", "512") == 0
    kernel.cram_worker()
    assert node.balloon_pages == 512
    kernel.validate()


def test_occupants_stay_on_an_open_node():
    kernel, _ = plugged(pages=1024)
    process, addr = placed(kernel, 400)
    capacity.set_capacity(kernel.memory, C, 512)
    kernel.cram_worker()
    assert kernel.memory.nodes[C].balloon_pages == 512
    assert on(kernel, process, addr, 400) == {C: 400}
    kernel.validate()


def test_withdrawn_reclaims_what_cannot_move():
    kernel, _ = plugged(pages=1024, swap=2048)
    process, addr = placed(kernel, 900)
    filled(kernel, 4096 - 40)
    capacity.set_capacity(kernel.memory, C, 512)
    kernel.cram_worker()
    assert kernel.memory.nodes[C].balloon_pages == 0
    gate.set_no_alloc(kernel.memory, C, True)
    kernel.cram_worker()
    assert kernel.memory.nodes[C].balloon_pages == 512
    assert kernel.memory.vmstat.count["pgcontig_reclaim"] >= 388
    process.touch(addr, 900 * PAGE_SIZE, write=False)
    kernel.validate()


def test_ratio_closes_the_gate_until_it_converged():
    kernel, _ = plugged(F1, ratio=2000)
    memory, cram = kernel.memory, kernel.memory.cram.nodes[C]
    assert capacity.set_compression_ratio(memory, C, 999) == -errno.EINVAL
    assert capacity.set_compression_ratio(memory, E, 1500) == -errno.ENODEV
    assert capacity.set_compression_ratio(memory, C, 1500) == 0
    assert (cram.target_pages, cram.gate.converge_block) == (1024, True)
    assert memory.nodes[C].no_alloc_owner
    kernel.cram_worker()
    assert (cram.balloon_pages, cram.gate.closed, memory.nodes[C].no_alloc_owner) == (1024, False, "")
    kernel.validate()


def test_nobody_is_killed_without_converge_block():
    kernel, _ = plugged(F1, pages=1024)
    process, _ = placed(kernel, 900)
    capacity.set_target(kernel.memory, C, 512)
    kernel.cram_worker()
    kernel.cram_worker()
    assert not process.killed
    assert kernel.memory.nodes[C].balloon_pages < 512


def test_killing_goes_on_until_it_fits():
    kernel, _ = plugged(F1, pages=1024, ratio=2000)
    one, _ = placed(kernel, 400)
    two, _ = placed(kernel, 400)
    capacity.set_compression_ratio(kernel.memory, C, 1000)
    kernel.cram_worker()
    assert kernel.memory.nodes[C].balloon_pages == 512
    assert [one.killed, two.killed].count(True) == 1
    assert kernel.memory.vmstat.count["cram_oom"] == 1
    kernel.validate()


def test_frames_of_the_balloon_move():
    kernel, device = plugged()
    device.write("balloon_target", "512")
    kernel.cram_worker()
    memory, cram = kernel.memory, kernel.memory.cram.nodes[C]
    first = cram.balloon[0][0]
    assert balloon.migrate_page(memory, first + 5, C, locked=True) == -errno.EAGAIN
    assert balloon.migrate_page(memory, first + 5, C) == 0
    assert balloon.migrate_page(memory, first + 5, C) == -errno.EINVAL
    assert (cram.balloon_pages, len(cram.balloon)) == (512, 3)
    assert balloon.migrate_page(memory, first, D) == -errno.ENOENT
    kernel.cram_worker()
    assert (cram.balloon_pages, memory.nodes[C].balloon_pages) == (511, 511)
    kernel.validate()


@pytest.mark.parametrize("design", [F1, F3])
def test_offline_takes_the_balloon_along(design):
    kernel, device = plugged(design)
    device.write("balloon_target", "2048")
    kernel.cram_worker()
    assert kernel.offline(C) == 0
    assert (kernel.memory.nodes[C].balloon_pages, kernel.memory.nodes[C].managed_pages) == (0, 0)
    assert kernel.online(C) == 0
    device.write("balloon_target", "2048")
    kernel.cram_worker()
    assert kernel.memory.nodes[C].balloon_pages == 2048
    kernel.validate()


def test_a_range_that_stays_keeps_its_balloon():
    kernel = make(F3)
    ranges = [(0, 2048), (2048, 2048)]
    registration.cram_register(kernel.hotplug, C, ranges, Feature.RECLAIM, "x")
    capacity.set_target(kernel.memory, C, 1024)
    kernel.cram_worker()
    assert kernel.offline(C, 2048) == 0
    kernel.cram_worker()
    assert kernel.memory.nodes[C].balloon_pages == 1024
    assert kernel.offline(C, 0) == 0
    assert kernel.memory.cram.nodes[C].target_pages == 0
    kernel.validate()


# -- trim


def answering(error, calls, bad=1):
    return CramNode(
        C, "x", Feature.RECLAIM, [(0, 4096)], trim_error=-error, trim_failures=calls, trim_bad_pages=bad
    )


@pytest.mark.parametrize(
    ("error", "calls", "generation", "trimmed", "zeroed"),
    [
        (0, 0, Generation.F3, 512, 0),
        (errno.EAGAIN, 8, Generation.F3, 512, 0),
        (errno.EAGAIN, 9, Generation.F3, 0, 512),
        (errno.EAGAIN, 9, Generation.F1, 509, 3),
        (errno.EBUSY, 1, Generation.F3, 0, 512),
        (errno.EBUSY, 1, Generation.F1, 0, 512),
    ],
)
def test_trim(error, calls, generation, trimmed, zeroed):
    cram = answering(error, calls, bad=3)
    assert trim.trim(cram, 512, generation) == zeroed
    assert (cram.trimmed_pages, cram.zeroed_pages) == (trimmed, zeroed)


def test_freed_pages_are_zeroed():
    kernel, _ = plugged()
    process, addr = placed(kernel, 16)
    process.munmap(addr, 16 * PAGE_SIZE)
    assert kernel.memory.cram.nodes[C].zeroed_pages == 16


# -- the hot ring


def frames_of(kernel, process, nr_pages):
    vma = process.task.mm.vmas[0]
    return [
        int(entry) >> PTE_PFN_SHIFT for entry in kernel.memory.page_table.pte[vma.slot : vma.slot + nr_pages]
    ]


def test_ring_overflow_and_rate_limit():
    kernel, _ = plugged(F1)
    process, addr = placed(kernel, 64)
    frames = frames_of(kernel, process, 64)
    assert hot_ring.report_hot(kernel.memory, (frames * 40)[:2000]) == 976
    kernel.memory.numa_balancing = NumaBalancing(mode=0, promote_rate_limit=11 * PAGE_SIZE)
    assert hot_ring.promote_hot(kernel.memory) == 10
    assert on(kernel, process, addr, 64) == {D: 10, C: 54}
    assert hot_ring.promote_hot(kernel.memory) == 0
    kernel.advance(2_000_000_000)
    assert hot_ring.promote_hot(kernel.memory) > 0
    kernel.validate()


def test_the_latest_version_has_no_ring():
    kernel, _ = plugged(F3)
    process, _ = placed(kernel, 4)
    assert hot_ring.report_hot(kernel.memory, frames_of(kernel, process, 4)) == 4
    assert kernel.memory.cram.hot == []


# -- the test device


def test_attributes_offline():
    kernel = make()
    device = CramDax(kernel, C)
    answers = {
        "memory_features": device.write("memory_features", "bad"),
        "zratio": device.write("zratio", "999"),
        "compression_ratio": device.write("compression_ratio", "1500"),
        "too low": device.write("compression_ratio", "999"),
        "no_alloc": device.write("no_alloc", "1"),
        "balloon_target": device.write("balloon_target", "1"),
        "state": device.write("state", "sideways"),
        "trim_count": device.write("trim_count", "1"),
        "unknown": device.write("colour", "1"),
    }
    assert answers == {
        "memory_features": -errno.EINVAL,
        "zratio": -errno.EINVAL,
        "compression_ratio": -errno.ENODEV,
        "too low": -errno.EINVAL,
        "no_alloc": -errno.ENODEV,
        "balloon_target": -errno.ENODEV,
        "state": -errno.EINVAL,
        "trim_count": -errno.EACCES,
        "unknown": -errno.ENOENT,
    }


def test_attributes_online():
    kernel, device = plugged(ratio=2000)
    assert device.write("zratio", "1000") == -errno.EBUSY
    assert device.write("memory_features", "reclaim,write_fence") == -errno.EBUSY
    assert device.write("compression_ratio", "1500") == 0
    kernel.cram_worker()
    read = {name: device.read(name) for name in ("state", "zratio", "compression_ratio", "balloon_target")}
    assert read == {
        "state": "online",
        "zratio": "2000",
        "compression_ratio": "1500",
        "balloon_target": "1024",
    }
    assert device.write("state", "offline") == 0
    assert (device.read("state"), device.write("no_alloc", "1")) == ("offline", -errno.ENODEV)
    assert device.write("state", "unplugged") == 0
    assert device.read("balloon_target") == "0"


def test_masks_with_a_fence_bit():
    assert fenced_features("reclaim,write_fence") == Feature.RECLAIM
    assert fenced_features("reclaim") == Feature.RECLAIM | Feature.USER_WRITE
    assert fenced_features("write_fence,write_fence") is None
    assert fenced_features("reclaim,nonsense") is None


def test_debug_files():
    kernel, _ = plugged(F1)
    files = kernel.sysfs
    control = "/sys/kernel/debug/cram/control"
    assert [
        files.write(control, text) for text in ("inflate 1 512", "noalloc 1", "block 1", "unblock 1")
    ] == [0] * 4
    assert [files.write(control, text) for text in ("inflate 2 512", "noalloc 2", "block 2")] == [
        -errno.ENODEV
    ] * 3
    assert [files.write(control, text) for text in ("inflate", "sing 1", "inflate 1 x")] == [
        -errno.EINVAL
    ] * 3
    kernel.cram_worker()
    assert str(files.read("/sys/kernel/debug/cram/nodes")).split("\n") == [
        "node nominal current perceived balloon target blocked allowed free present",
        "1 1000 1000 4096 512 512 1 0 3584 4096",
    ]


# -- state


@pytest.mark.parametrize("design", [F1, F3])
def test_snapshot(design):
    kernel, device = plugged(design, ratio=2000)
    placed(kernel, 32)
    device.write("compression_ratio", "1500")
    kernel.cram_worker()
    device.write("no_alloc", "1")
    snapshot = kernel.memory.snapshot()
    state = kernel.memory.cram.snapshot()
    other = CramService(kernel.memory.cram.generation)
    other.restore(state)
    assert other.snapshot() == state
    assert other.nodes[C] == kernel.memory.cram.nodes[C]
    device.write("compression_ratio", "2000")
    device.write("no_alloc", "0")
    kernel.cram_worker()
    kernel.memory.restore(snapshot)
    assert (kernel.memory.nodes[C].balloon_pages, kernel.memory.nodes[C].no_alloc_owner) == (1024, "cramdax1")
    kernel.validate()


def test_what_a_full_device_loses_is_an_error():
    kernel, _ = plugged()
    kernel.memory.cram.nodes[C].room_pages = 10
    process, addr = placed(kernel, 16)
    assert on(kernel, process, addr, 16) == {C: 10}
    with pytest.raises(Signalled) as raised:
        process.touch(addr + 10 * PAGE_SIZE, PAGE_SIZE, write=False)
    assert raised.value.signal.name == "SIGBUS"
    process.munmap(addr, 4 * PAGE_SIZE)
    assert kernel.memory.cram.nodes[C].room_pages == 4
    kernel.validate()


@pytest.mark.parametrize("design", [CAPS, F1, F3])
def test_a_child_that_writes_leaves_the_parents_page(design):
    kernel, _ = plugged(design)
    parent, addr = placed(kernel, 8)
    child = parent.fork()
    child.touch(addr, 8 * PAGE_SIZE, write=True)
    assert on(kernel, child, addr, 8) == {D: 8}
    assert on(kernel, parent, addr, 8) == {C: 8}
    assert kernel.memory.vmstat.count["pgpromote_fence"] == 0
    child.exit()
    parent.touch(addr, PAGE_SIZE, write=True)
    assert on(kernel, parent, addr, 8) == {D: 1, C: 7}
    kernel.validate()


def test_runs_under_the_latest_version_use_compressed_ram(rack, stream):
    # DRAM and CXL hold 512 pages; swap there is none.
    accesses = [(page, True) for page in range(600)]
    r = rack([stream(700, accesses)], design=F3, cram_features=0x2)
    r.run()
    count = r.memory.vmstat.count
    assert r.nodes_of().count(2) == count["demote_compressed"] - count["pgpromote_fence"] > 0
    assert r.memory.cram.nodes[2].placed_pages == count["demote_compressed"]
    assert count["pgleak"] == 0
    r.host.validate()
    again = rack([stream(700, accesses)], design=F3, cram_features=0x2)
    again.host.restore(r.host.snapshot())
    assert again.memory.cram.snapshot() == r.memory.cram.snapshot()
    again.host.validate()


def test_occupants_of_a_wanted_block_move_within_an_open_node():
    kernel, _ = plugged(pages=2048)
    process, addr = placed(kernel, 1100)
    process.munmap(addr, 300 * PAGE_SIZE)
    capacity.set_capacity(kernel.memory, C, 1024)
    kernel.cram_worker()
    assert kernel.memory.nodes[C].balloon_pages == 1024
    assert on(kernel, process, addr + 300 * PAGE_SIZE, 800) == {C: 800}
    kernel.validate()


def test_the_mark_holds_for_single_pages_and_for_moves():
    kernel, _ = plugged()
    node = kernel.memory.nodes[C]
    assert gate.set_no_alloc(kernel.memory, C, True) == 0
    assert (kernel.owners.alloc("x", C), room_pages(node)) == (-errno.ENOMEM, 0)
    assert gate.set_no_alloc(kernel.memory, C, False) == 0
    assert kernel.owners.alloc("x", C) >= 0
    assert room_pages(node) > 0
