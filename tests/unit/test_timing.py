"""Latencies: the stated figures, and a curve that never falls, in integers."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privmem.nodeagent.device.codecs import CODECS
from privmem.nodeagent.device.timing import CLASS_TIMING, DECOMPRESS_NS, access_latencies_ns, class_timing
from privmem.nodeagent.latency_curve import (
    CXL_CURVE,
    DDR5_CURVE,
    inflation_permille,
    loaded_latency_ns,
    queue_curve,
)

EPOCH_NS = 5_000_000


def test_nomad_table_1_platform_d() -> None:
    """391 and 712 cycles at 3.7 GHz; 270 and 83 GB/s."""
    assert (CLASS_TIMING["dram"]["latency_ns"], CLASS_TIMING["cxl"]["latency_ns"]) == (
        391 * 10 // 37 + 1,
        712 * 10 // 37,
    )
    found = [CLASS_TIMING[name][f"{way}_bandwidth"] for name in ("dram", "cxl") for way in ("read", "write")]
    assert found == [270 * 10**9] * 2 + [83 * 10**9] * 2


def test_classes_are_ordered_by_latency() -> None:
    idle = [
        access_latencies_ns(class_timing(*which))[0]
        for which in (("dram",), ("cxl",), ("compressed-ram", "lz4"), ("compressed-ram", "zstd"))
    ]
    assert idle == [106, 192, 1192, 2192]
    assert [class_timing(name)["read_ns"] for name in ("gpu", "nic", "slow-distributed")] == [198, 192, 3000]


#: Pairs of (GB/s, ns) as Mess measured them on its Skylake (six channels of DDR4-2666, 78 % reads): another
#: machine than the one that the curve of dram is from.
SKYLAKE = [
    (0, 66),
    (10.3, 70.6),
    (24.9, 74.8),
    (51.6, 81.7),
    (74.8, 98.5),
    (90.6, 122.8),
    (95.9, 137.5),
    (100.9, 190.3),
]


@pytest.mark.parametrize(("gb_s", "ns"), SKYLAKE)
def test_a_curve_of_one_machine_fits_another_within_a_quarter(gb_s: float, ns: float) -> None:
    """docs/validation.md has the table."""
    ours = inflation_permille(DDR5_CURVE, int(gb_s * 1000 / 101.0))
    assert abs(ours - 1000 * ns / 66) / (1000 * ns / 66) < 0.25


def test_every_curve_rises_from_rest() -> None:
    for name in CLASS_TIMING:
        curve = CLASS_TIMING[name]["curve"]
        assert curve[0] == (0, 1000) and curve[-1][0] == 100
        assert all(a[0] < b[0] and a[1] <= b[1] for a, b in itertools.pairwise(curve))


def test_a_queue_with_constant_service() -> None:
    """M/D/1: at half load half a service's time is waited, at 90 % four and a half of it."""
    assert dict(queue_curve(300, 3000)) == {
        0: 1000,
        30: 1021,
        50: 1050,
        70: 1116,
        80: 1200,
        90: 1450,
        95: 1950,
        98: 3450,
        100: 5000,
    }
    assert queue_curve(3000, 300)[-2:] == ((98, 5000), (100, 5000))


def test_every_codec_has_a_decompression_time() -> None:
    assert sorted(DECOMPRESS_NS) == sorted(CODECS)


def test_the_curve_at_and_between_its_points() -> None:
    found = [inflation_permille(CXL_CURVE, u) for u in (0, 110, 218, 220, 430, 675, 960, 999, 1000, 9999)]
    assert found == [1000, 1007, 1013, 1014, 1032, 1066, 1242, 5182, 5387, 5387]


def test_a_curve_of_one_point_is_a_constant() -> None:
    assert [inflation_permille([[0, 1300]], u) for u in (0, 500, 1000)] == [1300, 1300, 1300]


def test_a_curve_that_starts_late_is_flat_before() -> None:
    assert [inflation_permille([[50, 1000], [100, 2000]], u) for u in (0, 499, 750)] == [1000, 1000, 1500]


@pytest.mark.parametrize(
    ("share", "expected"), [(0, 3000), (25, 3156), (50, 3444), (100, 9417), (250, 23543)]
)
def test_loaded_latency_by_share_of_the_bandwidth(share: int, expected: int) -> None:
    full = 12_500_000_000 * EPOCH_NS // 10**9
    moved, before = full * share // 100, min(expected, 9417)
    assert loaded_latency_ns(3000, moved, EPOCH_NS, 12_500_000_000, DDR5_CURVE, before) == expected


def test_waiting_threads_settle_where_the_curve_meets_their_demand() -> None:
    """4096 accesses of 64 bytes in flight: far too many for a port at its idle latency. The curve's value of the
    last epoch alone would swing between 3000 and 15000 for ever.
    """
    curve = queue_curve(327, 3000)
    latency, seen = 3000, []
    for _ in range(6):
        moved = 4096 * 64 * EPOCH_NS // latency
        latency = loaded_latency_ns(3000, moved, EPOCH_NS, 25_000_000_000, curve, latency)
        seen.append(latency)
    assert len(set(seen)) == 1
    utilisation = 4096 * 64 * 1000 // (seen[0] * 25)
    assert abs(3000 * inflation_permille(curve, utilisation) // 1000 - seen[0]) < 300
    assert 950 < utilisation < 1000


def test_a_demand_that_does_not_wait_reaches_the_curve() -> None:
    full = 83 * EPOCH_NS
    latency, seen = 192, []
    for _ in range(4):
        latency = loaded_latency_ns(192, full * 94 // 100, EPOCH_NS, 83 * 10**9, CXL_CURVE, latency)
        seen.append(latency)
    assert seen == [213, 221, 225, 226]
    assert 192 * inflation_permille(CXL_CURVE, 940) // 1000 == 227


def test_reads_and_writes_load_apart_and_decompression_is_not_inflated() -> None:
    timing = class_timing("compressed-ram", "lz4")
    full = timing["read_bandwidth"] * EPOCH_NS // 10**9
    worst = 192 * 5387 // 1000 + 1000
    assert access_latencies_ns(timing, (full, 0), EPOCH_NS, (worst, worst)) == (worst, 1192)
    assert access_latencies_ns(timing, (0, full), EPOCH_NS, (worst, worst)) == (1192, worst)


def test_reads_and_writes_have_bandwidths_of_their_own() -> None:
    timing = class_timing("dram") | {"write_ns": 90, "write_bandwidth": 135 * 10**9}
    moved = (135 * EPOCH_NS, 135 * EPOCH_NS)
    steady = (106 * 1148 // 1000, 90 * 3139 // 1000)
    assert access_latencies_ns(timing, moved, EPOCH_NS, steady) == steady


CURVES = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 2000)), min_size=0, max_size=6).map(
    lambda steps: [
        [0, 1000],
        *(
            [u, 1000 + p]
            for u, p in zip(
                itertools.accumulate(step[0] for step in steps),
                itertools.accumulate(step[1] for step in steps),
                strict=True,
            )
        ),
    ]
)


@given(CURVES, st.lists(st.integers(0, 10**12), min_size=2, max_size=6), st.integers(1, 10**6))
def test_more_bytes_never_make_it_faster(curve: list[list[int]], moved: list[int], base_ns: int) -> None:
    found = [loaded_latency_ns(base_ns, nr, EPOCH_NS, 10**10, curve) for nr in sorted(moved)]
    assert found == sorted(found)
    needed = -(-max(moved) * base_ns * 10**9 // (10**10 * EPOCH_NS))
    assert base_ns <= found[0] and found[-1] <= max(base_ns * curve[-1][1] // 1000, needed)
    assert found[-1] >= min(needed, 10**9)
    assert all(type(latency) is int for latency in found)
