"""The host as a whole: where pages land, when they move, what it costs, and that nothing is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from privmem.nodeagent.host.costs import FAULT_NS
from privmem.scheduler import plain
from privmem.scheduler.abi import Mpol
from privmem.scheduler.errors import InvariantError
from privmem.scheduler.messages import FreePages, RequestExtent, StorePages, Traffic


def each(pages: range, write: bool = True) -> list[tuple[int, bool]]:
    return [(page, write) for page in pages]


def test_first_touch_is_local(rack, stream):
    r = rack([stream(100, each(range(100)))])
    r.run()
    assert r.nodes_of() == [0] * 100
    assert r.vm["pgfault"] == r.vm["pgalloc"] == 100
    assert r.memory.numastat[0].tolist() == [100, 0, 0, 0, 100, 0]


def test_time_is_latency_plus_faults(rack, stream):
    r = rack([stream(10, each(range(10)) + each(range(10), False) * 5)])
    r.run()
    assert r.host.programs[0].time_ns == 10 * FAULT_NS + 60 * 100
    assert r.host.programs[0].access_ns == 6000


def test_threads_divide_the_time(rack, stream):
    r = rack([stream(10, each(range(10)) * 3)], threads=4)
    r.run()
    assert r.host.programs[0].time_ns == (10 * FAULT_NS + 30 * 100) // 4


def test_thinking_takes_time(rack, stream):
    r = rack([stream(1, each(range(1)) * 10)], think_ns=50)
    r.run()
    assert r.host.programs[0].time_ns == FAULT_NS + 10 * 150


def test_overflow_goes_to_the_next_public_node_and_never_to_a_private_one(rack, stream):
    r = rack([stream(400, each(range(400)))], demotion=False)
    r.run()
    assert set(r.nodes_of()) == {0, 1}
    assert r.memory.numastat[1, 1] > 100  # numa_miss
    assert r.memory.nodes[2].managed_pages - r.memory.nodes[2].free_pages == 0
    assert not [m for m in r.sent if isinstance(m.body, RequestExtent)]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ([Mpol.BIND, 0b10], {1: 40}),
        ([Mpol.PREFERRED, 0b10], {1: 40}),
        ([Mpol.LOCAL, 0], {0: 40}),
        ([Mpol.INTERLEAVE, 0b11], {0: 20, 1: 20}),
    ],
)
def test_policies_place_pages(rack, stream, policy, expected):
    r = rack([stream(40, each(range(40)))], policies=[[int(policy[0]), policy[1]]])
    r.run()
    assert Counter(r.nodes_of()) == expected


def test_a_policy_may_not_name_a_closed_private_node(rack, stream):
    with pytest.raises(InvariantError, match="errno 22"):
        rack([stream(4, [])], policies=[[int(Mpol.BIND), 0b100]])


def test_bind_does_not_spill_but_kills(rack, stream):
    r = rack([stream(400, each(range(400)))], policies=[[int(Mpol.BIND), 0b1]], demotion=False)
    r.run()
    assert r.vm["oom_kill"] == 1
    assert r.host.programs[0].killed
    assert r.memory.nodes[0].free_pages == 256


def big(rack, stream, pages=900, rounds=3, **options):
    return rack([stream(pages, each(range(pages)) * rounds)], **options)


def test_memory_that_outgrows_dram_goes_down_tier_by_tier(rack, stream):
    r = big(rack, stream)
    r.run()
    assert Counter(r.nodes_of()).keys() == {0, 1, 2, 3}
    for event in (
        "pgdemote_kswapd",
        "demote_compressed",
        "demote_pooled",
        "extents_granted",
        "pgpromote_fence",
    ):
        assert r.vm[event] > 0, event
    assert r.vm["oom_kill"] == 0


def test_compressed_pages_are_read_in_place_and_never_written_there(rack, stream):
    r = big(rack, stream, rounds=1)
    r.run()
    there = [page for page, nid in enumerate(r.nodes_of()) if nid == 2]
    reads = r.memory.nr_accesses[2, 0]
    again = rack([stream(900, each(range(900)) + each(there, False) + each(there[:5]))])
    again.run()
    assert again.memory.nr_accesses[2, 0] > reads
    assert again.memory.nr_accesses[2, 1] == 0
    assert again.vm["pgpromote_fence"] >= 5


def test_the_device_is_told_of_every_page_in_order(rack, stream):
    r = big(rack, stream)
    r.run()
    held: dict[str, set[int]] = {"device/d2": set(), "device/d3": set()}
    for message in r.sent:
        if isinstance(message.body, StorePages):
            assert not held[message.to] & set(message.body.dpa.tolist())
            held[message.to] |= set(message.body.dpa.tolist())
        elif isinstance(message.body, FreePages):
            assert set(message.body.dpa.tolist()) <= held[message.to]
            held[message.to] -= set(message.body.dpa.tolist())
    where = Counter(r.nodes_of())
    assert (len(held["device/d2"]), len(held["device/d3"])) == (where[2], where[3])


def test_content_keeps_its_page_and_advances_when_written(rack, stream):
    r = big(rack, stream, rounds=4)
    r.run()
    seen: dict[int, int] = {}
    for message in r.sent:
        if isinstance(message.body, StorePages):
            assert set(message.body.source.tolist()) == {1}
            for index, version in zip(
                message.body.index.tolist(), message.body.version.tolist(), strict=True
            ):
                assert 0 <= index < 900
                assert version >= seen.get(index, 0)
                seen[index] = version
    assert max(seen.values()) >= 2


def test_credit_is_never_exceeded(rack, stream):
    r = big(rack, stream, credit=10)
    r.run()
    sizes = [len(m.body.dpa) for m in r.sent if isinstance(m.body, StorePages) and m.to == "device/d2"]
    assert max(sizes) == 10


def test_a_fault_on_a_storing_node_needs_the_device_s_promise_too(rack, stream):
    policy = [[int(Mpol.BIND), 0b100]]
    r = rack(
        [stream(40, each(range(40), False))], policies=policy, cram_features=0x86, credit=25, answers=False
    )
    r.run()
    stored = sum(len(m.body.dpa) for m in r.sent if isinstance(m.body, StorePages))
    assert stored == 25
    assert r.vm["oom_kill"] == 1


def test_the_host_stops_where_it_needs_an_extent(rack, stream):
    r = big(rack, stream, answers=False)
    while not any(isinstance(m.body, RequestExtent) for m in r.sent):
        r.step()
    request = r.sent[-1] if isinstance(r.sent[-1].body, RequestExtent) else None
    asked = [m for m in r.sent if isinstance(m.body, RequestExtent)]
    assert len(asked) == 1
    assert r.reached_ns == asked[0].time_ns
    before = r.host.programs[0].accesses_done
    r.step()
    assert r.host.programs[0].accesses_done == before
    assert request is None or request.to == "scheduler"


def test_a_refused_host_lives_on_without_the_pool(rack, stream):
    r = big(rack, stream, pages=600, pool_left=0)
    r.run()
    assert r.vm["extents_refused"] > 0
    assert 3 not in r.nodes_of()
    assert r.vm["oom_kill"] == 0


def test_hot_pages_are_promoted_by_hint_faults(rack, stream):
    hot = [(page, False) for page in range(260, 300)] * 1000
    r = rack([stream(300, each(range(300)) + hot)], numa_balancing=2)
    r.run()
    assert r.vm["numa_hint_faults"] > 0
    assert r.vm["pgpromote_success"] >= 30
    assert r.nodes_of()[260:] == [0] * 40


def test_traffic_is_reported_once_an_epoch(rack, stream):
    r = rack([stream(50, each(range(50)) * 100)])
    r.run()
    traffic = [m for m in r.sent if isinstance(m.body, Traffic)]
    assert len({(m.to, m.body.epoch) for m in traffic}) == len(traffic)
    assert sum(m.body.write_bytes for m in traffic if m.to == "device/d0") == 50 * 100 * 64


def test_extents_go_back_when_their_pages_are_free(rack, stream):
    r = big(rack, stream, pages=1000, rounds=1)
    r.run()
    held = len(r.memory.nodes[3].extents)
    from privmem.nodeagent.host import oom

    oom.kill_largest(r.memory, r.host.programs)
    r.finished = False
    for _ in range(held + 2):
        r.step()
    assert r.vm["extents_released"] == held - 2  # it keeps as much free as one more request would bring
    r.memory_valid()


def test_a_snapshot_goes_on_as_the_original(rack, stream):
    whole, first, second = (big(rack, stream, numa_balancing=2) for _ in range(3))
    whole.run()
    first.run(epochs=3)
    header, arrays = plain.pack(first.host.snapshot())
    second.host.restore(plain.unpack(header, arrays))
    second.inbox, second.epoch, second.pool_left = first.inbox, first.epoch, first.pool_left
    second.run()
    assert plain.digest(second.host.snapshot()) == plain.digest(whole.host.snapshot())


def _digest_of_a_run() -> str:
    sys.path.insert(0, str(Path(__file__).parent))
    from conftest import ListStream, SmallRack

    r = SmallRack([ListStream(900, each(range(900)) * 2)], numa_balancing=2)
    r.run()
    return plain.digest(r.host.snapshot())


def test_compiled_and_plain_code_agree():
    program = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_host; "
    program += "print(test_host._digest_of_a_run())"
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "NUMBA_DISABLE_JIT": off},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for off in ("0", "1")
    ]
    assert outputs[0] == outputs[1] != ""


def _free_twice(memory):
    memory.nodes[0].managed_pages += 1


def _lose_a_frame(memory):
    memory.page_table.pte[1] = 0


def _map_twice(memory):
    memory.page_table.pte[1] = memory.page_table.pte[2]


def _miscount_a_list(memory):
    memory.lru_size[0] += 1


def _cut_a_list(memory):
    memory.frames.next_[memory.lru_head[0]] = -1


def _forget_a_page(memory):
    memory.lru_del(int(memory.lru_head[0]))


def _open_the_fence(memory):
    slot = int(memory.frames.rmap[memory.nodes[2].start_pfn : memory.nodes[2].start_pfn + 256].max())
    memory.page_table.pte[slot] |= np.uint32(2)


def _stray_page(memory):
    used = np.flatnonzero(memory.frames.flags[memory.nodes[2].start_pfn :])[0] + memory.nodes[2].start_pfn
    memory.frames.reason[used] = 1


@pytest.mark.parametrize(
    "damage",
    [
        _free_twice,
        _lose_a_frame,
        _map_twice,
        _miscount_a_list,
        _cut_a_list,
        _forget_a_page,
        _open_the_fence,
        _stray_page,
    ],
)
def test_the_recount_sees_damage(rack, stream, damage):
    r = big(rack, stream, rounds=1)
    r.run()
    damage(r.memory)
    with pytest.raises(InvariantError):
        r.memory_valid()
