"""Pools: shares, reservations, partial grants, who gives back, pieces; and what the host does when it is asked."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privmem.nodeagent.device.extents import ExtentAllocator
from privmem.scheduler.errors import ProtocolError
from privmem.scheduler.messages import (
    AllocExtent,
    ExtentGranted,
    ExtentUse,
    Message,
    ReclaimAnswered,
    ReclaimExtent,
    ReleaseExtent,
    RequestExtent,
)
from privmem.scheduler.participant import Clock
from privmem.scheduler.placement import Scheduler
from privmem.scheduler.pool_account import KEPT_NS, WANT_NS, DeviceAccount
from privmem.scheduler.pool_shares import GIVE_BACK_POLICIES, Claim, Holder, give_back_order, shares

UNIT = 4
A, B, C = "host/a", "host/b", "host/c"


def account(extents: int, **pool) -> DeviceAccount:
    spec = {"capacity_pages": extents * UNIT, "extent_pages": UNIT, "pooled": True}
    return DeviceAccount("pool", spec | pool, [A, B, C])


def take(pool: DeviceAccount, host: str, extents: int, now_ns: int = 0) -> int:
    """Ask, and let the device grant what was admitted: extents, or a negative errno."""
    pages = pool.admit(host, 1, extents * UNIT, now_ns)
    if pages < 0:
        return pages
    pool.confirm(host, 1, pages, 0)
    pool.validate()
    return pages // UNIT


# -- shares


def test_shares_go_by_weight_and_stop_at_what_is_wanted():
    claims = {"a": Claim(100, 0, 1), "b": Claim(100, 0, 2), "c": Claim(5, 0, 5)}
    assert shares(claims, 35) == {"a": 10, "b": 20, "c": 5}


def test_a_floor_is_kept_and_the_others_share_the_rest():
    claims = {"a": Claim(100, 30, 1), "b": Claim(100, 0, 1), "c": Claim(100, 0, 3)}
    assert shares(claims, 50) == {"a": 30, "b": 5, "c": 15}
    assert shares({"a": Claim(3, 30, 1), "b": Claim(100, 0, 1)}, 50) == {"a": 3, "b": 47}


def test_what_is_left_over_goes_by_name_to_those_next_in_level():
    assert shares({n: Claim(9, 0, 1) for n in "abc"}, 8) == {"a": 3, "b": 3, "c": 2}
    assert shares({"a": Claim(9, 0, 2), "b": Claim(9, 0, 3)}, 4) == {"a": 2, "b": 2}


@given(
    st.lists(
        st.tuples(st.integers(0, 300), st.integers(0, 20), st.integers(1, 1000)), min_size=1, max_size=12
    ),
    st.integers(0, 400),
)
def test_shares_give_all_there_is_and_never_more(rows, more):
    claims = {f"h{n:02}": Claim(*row) for n, row in enumerate(rows)}
    extents = sum(min(c.floor, c.wants) for c in claims.values()) + more
    found = shares(claims, extents)
    assert sum(found.values()) == min(extents, sum(c.wants for c in claims.values()))
    for name, claim in claims.items():
        assert min(claim.floor, claim.wants) <= found[name] <= claim.wants
    for name, claim in claims.items():
        for other, rival in claims.items():
            if found[name] < claim.wants and found[other] > min(rival.floor, rival.wants):
                assert (found[other] - 1) * claim.weight <= (found[name] + 1) * rival.weight


def test_who_gives_back_first():
    a, b, c = Holder("a", 10, 2, 1, 50), Holder("b", 30, 3, 3, 30), Holder("c", 20, 5, 2, 90)
    order = {p: "".join(h.host for h in give_back_order(p, [c, b, a], "a")) for p in GIVE_BACK_POLICIES}
    assert order == {
        "none": "",
        "over-share": "cab",
        "coldest": "bca",
        "largest": "bca",
        "round-robin": "bca",
    }
    with pytest.raises(ValueError, match="no policy 'x'"):
        give_back_order("x", [], "")


def test_what_is_left_over_goes_to_nobody_whom_his_floor_already_lifts():
    claims = {"a": Claim(81, 11, 999), "b": Claim(5, 4, 37), "c": Claim(90, 0, 1000)}
    assert shares(claims, 101) == {"a": 48, "b": 4, "c": 49}


# -- accounts


def test_a_reservation_is_kept_back_from_all_others():
    pool = account(8, reserved_pages={B: 3 * UNIT})
    assert [take(pool, A, 4), take(pool, A, 4), take(pool, A, 1)] == [4, 1, -errno.ENOMEM]
    assert [take(pool, B, 3), take(pool, B, 1)] == [3, -errno.ENOMEM]


def test_reservations_must_fit():
    with pytest.raises(ProtocolError, match="more than it has"):
        account(2, reserved_pages={A: 3 * UNIT})


def test_a_grant_may_be_partial_and_stays_within_the_quota():
    pool = account(8, quota_pages={A: 5 * UNIT})
    assert [take(pool, A, 3), take(pool, A, 3), take(pool, A, 1)] == [3, 2, -errno.EDQUOT]
    assert pool.partial_grants == 1
    assert take(pool, B, 9) == 3


def test_without_weights_and_policy_first_come_is_first_served():
    pool = account(8)
    assert [take(pool, A, 8), take(pool, B, 1), pool.ask_back(0)] == [8, -errno.ENOMEM, []]


def test_the_one_above_its_share_is_asked_and_what_it_gives_is_kept_for_the_one_below():
    pool = account(8, weights={A: 1, B: 3}, give_back="over-share")
    assert take(pool, A, 8) == 8
    assert take(pool, B, 4, 10) == -errno.ENOMEM
    assert pool.ask_back(10) == [(A, 4 * UNIT)]
    assert pool.ask_back(10) == []  # it was asked already
    pool.release(A, 4 * UNIT)
    pool.answered(A, 4 * UNIT, 4 * UNIT, 0, 20)
    assert take(pool, A, 2, 30) == -errno.ENOMEM  # free, but not for him
    assert [take(pool, B, 4, 40), take(pool, B, 4, 50)] == [4, -errno.ENOMEM]
    assert pool.ask_back(50) == [(A, 2 * UNIT)]
    pool.validate()


def test_a_request_is_forgotten_after_a_time():
    pool = account(8, give_back="largest")
    assert take(pool, A, 8) == 8
    assert take(pool, B, 8, 10) == -errno.ENOMEM
    pool.release(A, 4 * UNIT)
    assert take(pool, A, 1, 9 + WANT_NS) == -errno.ENOMEM
    assert take(pool, A, 1, 10 + WANT_NS) == 1


def test_who_could_give_nothing_is_left_alone_for_a_time():
    pool = account(8, give_back="largest")
    assert take(pool, A, 8) == 8
    assert take(pool, B, 1, 10) == -errno.ENOMEM
    assert pool.ask_back(10) == [(A, UNIT)]
    pool.answered(A, UNIT, 0, 0, 20)
    assert take(pool, B, 1, 30) == -errno.ENOMEM
    assert pool.ask_back(30) == []
    assert take(pool, B, 1, 20 + KEPT_NS) == -errno.ENOMEM
    assert pool.ask_back(20 + KEPT_NS) == [(A, UNIT)]
    assert (pool.reclaims, pool.kept_pages) == (2, UNIT)
    with pytest.raises(ProtocolError, match="more than it was asked for"):
        pool.answered(C, UNIT, 0, 0, 30)


def test_round_robin_asks_one_after_the_other():
    pool = account(12, give_back="round-robin")
    assert [take(pool, A, 6), take(pool, B, 6)] == [6, 6]
    asked = []
    for n in range(4):
        assert take(pool, C, 1, n) == -errno.ENOMEM
        asked += pool.ask_back(n)
        host, pages = asked[-1]
        pool.release(host, pages)
        pool.answered(host, pages, pages, 0, n)
        assert take(pool, C, 1, n) == 1
    assert asked == [(B, UNIT), (A, UNIT), (B, UNIT), (A, UNIT)]


def test_saving_is_the_sum_of_peaks_against_the_peak_of_the_sum():
    pool = account(8)
    take(pool, A, 6)
    pool.release(A, 5 * UNIT)
    take(pool, B, 5)
    assert pool.summary()["saved_pages"] == (6 + 5) * UNIT - 6 * UNIT


# -- the participant


def scheduler(**pool) -> Scheduler:
    spec = {"capacity_pages": 4 * UNIT, "extent_pages": UNIT, "pooled": True} | pool
    return Scheduler({"name": "scheduler", "hosts": [A, B, C], "devices": {"pool": spec}})


def step(s: Scheduler, *bodies: tuple[str, int, object], horizon: int = 10**9) -> list[tuple[str, object]]:
    inbox = [Message(at, who, seq, "scheduler", body) for seq, (who, at, body) in enumerate(bodies)]
    out = s.step(inbox, Clock(0, 0, 2 * 10**9, horizon))
    s.validate()
    twin = scheduler()
    twin.devices = {"pool": DeviceAccount("pool", _spec_of(s), [A, B, C])}
    twin.restore(s.snapshot())
    assert twin.snapshot() == s.snapshot()
    return [(m.to, m.body) for m in out.messages]


def _spec_of(s: Scheduler) -> dict:
    pool = s.devices["pool"]
    names = ("capacity_pages", "extent_pages", "pooled", "weights", "give_back", "reserved_pages")
    return {name: getattr(pool, name) for name in names}


POOL = "device/pool"


def test_the_coldest_is_asked_by_what_hosts_told():
    s = scheduler(give_back="coldest")
    step(s, (A, 1, RequestExtent(POOL, 1, 2 * UNIT)), (B, 2, RequestExtent(POOL, 1, 2 * UNIT)))
    step(s, (POOL, 1, ExtentGranted(POOL, A, 1, 0, 2 * UNIT)), (POOL, 2, ExtentGranted(POOL, B, 1, 8, 8)))
    step(s, (A, 3, ExtentUse(POOL, 100)), (B, 3, ExtentUse(POOL, 99)))
    sent = step(s, (C, 4, RequestExtent(POOL, 1, UNIT)))
    assert sent[-1] == (B, ReclaimExtent(POOL, UNIT, False))


def test_a_piece_after_the_other_settles_a_promise():
    s = scheduler()
    assert step(s, (A, 1, RequestExtent(POOL, 1, 9))) == [(POOL, AllocExtent(A, 1, 3 * UNIT))]
    step(s, (POOL, 1, ExtentGranted(POOL, A, 1, 0, 2 * UNIT, UNIT)))
    assert s.counters()["promised_pages"] == UNIT
    step(s, (POOL, 1, ExtentGranted(POOL, A, 1, 12, UNIT)))
    assert (s.counters()["promised_pages"], s.counters()["granted_pages"]) == (0, 3 * UNIT)
    step(s, (A, 2, RequestExtent(POOL, 1, UNIT)))
    with pytest.raises(ProtocolError, match="not those promised"):
        step(s, (POOL, 2, ExtentGranted(POOL, A, 1, 0, UNIT, UNIT)))


def test_planned_removals_wait_for_their_time():
    s = scheduler(removals=[[50, B, UNIT]])
    assert s.step([], Clock(0, 0, 40, 40)).waits_for_horizon
    out = s.step([], Clock(1, 40, 80, 80))
    told = out.messages[0]
    assert (told.time_ns, told.to, told.body) == (50, B, ReclaimExtent(POOL, UNIT, True))
    assert not out.waits_for_horizon
    step(s, (B, 90, ReclaimAnswered(POOL, UNIT, 0, 0)))
    assert s.summary()["devices"]["pool"]["kept_pages"] == UNIT


# -- pieces on the device


def test_a_grant_in_pieces_and_a_return_of_part_of_one():
    extents = ExtentAllocator(8 * UNIT, UNIT)
    assert [extents.grant("x", UNIT) for _ in range(8)] == [(n * UNIT, UNIT) for n in range(8)]
    for unit in (0, 2, 3, 5, 6, 7):
        assert extents.release("x", unit * UNIT, UNIT) == 0
    assert sorted(extents.grant_pieces("y", 5 * UNIT - 1)) == [(8, 8), (20, 4), (24, 8)]
    assert extents.grant_pieces("y", 2 * UNIT) == -errno.ENOMEM
    assert extents.grant_pieces("y", 0) == -errno.EINVAL
    assert (
        extents.holds("y", 12, UNIT) and not extents.holds("y", 10, UNIT) and not extents.holds("y", 4, UNIT)
    )
    assert extents.release("y", 12, UNIT) == 0
    assert extents.release("y", 12, UNIT) == extents.release("x", 8, UNIT) == -errno.EINVAL
    assert extents.granted_pages() == {"x": 8, "y": 16}
    extents.validate()


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 20), st.booleans()), max_size=40))
def test_pieces_never_overlap_and_all_that_is_free_can_be_had(steps):
    extents = ExtentAllocator(24, 1)
    for who, pages, back in steps:
        host = "xyz"[who]
        mine = [(start, nr) for start, nr, holder in extents.extents() if holder == host]
        if back and mine:
            start, nr = mine[pages % len(mine)]
            assert extents.release(host, start + pages % nr, 1) == 0
        else:
            free = extents.free_pages
            got = extents.grant_pieces(host, pages)
            assert got == -errno.ENOMEM if pages > free else sum(nr for _, nr in got) == pages
        extents.validate()


# -- the host that is asked


def each(pages: range) -> list[tuple[int, bool]]:
    return [(page, True) for page in pages]


def grown(rack, stream, *used: int):
    """A host whose pages fill DRAM, CXL, compressed RAM and part of the pool."""
    r = rack([stream(pages, each(range(pages))) for pages in used])
    r.run()
    assert r.memory.nodes[3].extents
    return r


def reclaim(r, nr_pages: int, *, forced: bool) -> list:
    asked = ReclaimExtent("device/d3", nr_pages, forced)
    r.inbox = [Message(r.epoch * 10**6, "scheduler", 99, "host/h0", asked)]
    before = len(r.sent)
    r.step()
    r.memory_valid()
    bodies = [m.body for m in r.sent[before:]]
    return [b for b in bodies if isinstance(b, (ReleaseExtent, ReclaimAnswered))]


def residents(r) -> int:
    node = r.memory.nodes[3]
    return node.managed_pages - node.free_pages


def test_what_cannot_move_stays_when_the_pool_asks(rack, stream):
    r = grown(rack, stream, 1000)
    before, held = r.nodes_of(), list(r.memory.nodes[3].extents)
    all_pages = sum(pages for _, pages in held)
    told = reclaim(r, all_pages, forced=False)
    assert told[-1].asked_pages == all_pages and told[-1].lost_pages == 0
    assert told[-1].released_pages == sum(b.nr_pages for b in told[:-1]) < all_pages
    assert sum(nid >= 0 for nid in r.nodes_of()) == len(before) and r.vm["extent_kill"] == 0


def test_residents_move_to_ordinary_memory_with_room(rack, stream):
    r = grown(rack, stream, 300, 700)
    from privmem.nodeagent.host import oom

    oom.kill_largest(r.memory, r.host.programs)
    inside = residents(r)
    told = reclaim(r, 10**6, forced=False)
    assert r.memory.nodes[3].extents == [] and r.memory.nodes[3].managed_pages == 0
    assert told[-1].lost_pages == 0 and told[-1].released_pages == sum(b.nr_pages for b in told[:-1])
    assert all(nid >= 0 for nid in r.nodes_of()) and 3 not in r.nodes_of()
    assert r.vm["pgmigrate_success"] >= inside


def test_what_is_taken_by_force_is_lost_and_told_page_by_page(rack, stream):
    r = grown(rack, stream, 1000)
    node = r.memory.nodes[3]
    start, pages = node.extents[-1]
    there = {page: nid for page, nid in enumerate(r.nodes_of()) if nid == 3}
    told = reclaim(r, 10**6, forced=True)
    lost = r.host.summary()["lost_pages"]
    assert told[-1].lost_pages == len(lost) > 0
    assert {row[4] for row in lost} <= there.keys() and {(row[1], row[3]) for row in lost} == {(3, "p0")}
    assert len({row[2] for row in lost}) == len(lost)
    assert r.host.programs[0].killed and r.vm["extent_kill"] == 1 and r.vm["extent_pages_lost"] == len(lost)
    assert node.managed_pages == 0 and (start, pages) not in node.extents
    twin = rack([stream(1000, each(range(1000)))])
    twin.host.restore(r.host.snapshot())
    assert twin.host.snapshot()["lost_pages"] == lost


def test_residents_move_within_the_node_when_other_extents_have_room(rack, stream):
    r = grown(rack, stream, 1000)
    node = r.memory.nodes[3]
    r.memory.online(node, 960, 64)
    r.memory.setup_watermarks()
    inside = residents(r)
    told = reclaim(r, 64, forced=False)
    assert told[-1].released_pages >= 64
    assert r.nodes_of().count(3) == residents(r) == inside
    assert sum(nid >= 0 for nid in r.nodes_of()) == 1000


def test_a_grant_in_pieces_comes_online_extent_by_extent(rack, stream):
    r = rack([stream(100, each(range(100)))])
    r.step()
    r.host.waiting_nid = 3
    first, last = (ExtentGranted("device/d3", "host/h0", 3, *piece) for piece in ((0, 128, 64), (256, 64, 0)))
    r.host._receive(Message(0, "device/d3", 0, "host/h0", first))
    assert r.host.waiting_nid == 3
    r.host._receive(Message(0, "device/d3", 1, "host/h0", last))
    assert r.host.waiting_nid == -1
    assert r.memory.nodes[3].extents == [(0, 64), (64, 64), (256, 64)]


def test_a_host_keeps_a_requests_worth_besides_what_it_gives_back(rack, stream):
    r = rack([stream(100, each(range(100)))])
    node = r.memory.nodes[3]
    object.__setattr__(node.spec, "request_pages", 192)
    for start in range(0, 384, 64):
        r.memory.online(node, start, 64)
    r.memory.setup_watermarks()
    for _ in range(6):
        r.host._give_back_extent(node)
    assert node.free_pages - 64 < 192 + node.wmark.high_pages <= node.free_pages


def test_a_process_that_exits_frees_its_memory_at_its_time(rack, stream):
    r = rack([stream(100, each(range(100))), stream(50, each(range(50)))])
    first, second = r.host.programs
    first.spec = replace(first.spec, stop_ns=3 * 10**6)
    second.spec = replace(second.spec, start_ns=2 * 10**6)
    second.time_ns = second.spec.start_ns
    used = []
    while r.epoch < 5:
        r.step()
        used.append(sum(n.managed_pages - n.free_pages for n in r.memory.nodes.values()))
    assert used == [100, 100, 150, 50, 50]
    assert first.exited and not first.killed and second.ended and not second.exited
    r.memory_valid()
