"""What is particular to each kind of access stream: its pages, its shares, and what it refuses."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privmem.cluster.errors import ConfigError, TraceError
from privmem.cluster.workloads import open_stream
from privmem.cluster.workloads._workload_kernel import mix
from privmem.cluster.workloads.streams import mixed

DRAWN = {"nr_pages": 1000, "write_permille": 250, "accesses": 100_000, "seed": 42}
HOTSET = {"hot_pages": 100, "hot_access_permille": 900, "period_accesses": 10_000, "move_pages": 300}
#: One stream a kind, and the hash of all its accesses. It must never change: it would change every digest.
GOLDEN: dict[str, tuple[dict[str, Any], str]] = {
    "zipf": ({"theta_permille": 990}, "802c2d30857c3dd2"),
    "uniform": ({}, "69ca65245c870ae5"),
    "scan": ({"stride_pages": 7}, "88eec3e72f18ab61"),
    "hotset": (HOTSET, "954cade4204a04dd"),
}


def accesses_of(
    kind: str, resources: dict[str, np.ndarray] | None = None, **spec: Any
) -> tuple[np.ndarray, np.ndarray]:
    """(pages, writes) of a whole stream."""
    drawn = {} if kind == "replay" else DRAWN
    stream = open_stream({"kind": kind} | drawn | spec, resources or {})
    out = np.empty(stream.total, dtype=np.uint32)
    assert stream.fill(out) == stream.total
    return out >> 1, out & 1


def hash_of(kind: str, **spec: Any) -> str:
    pages, writes = accesses_of(kind, **spec)
    packed = (pages << 1 | writes).astype("<u4").tobytes()
    return hashlib.blake2b(packed, digest_size=8).hexdigest()


def near(count: int, expected: float) -> bool:
    """Within five standard deviations of a Poisson count; seeds are fixed, so this is not a gamble."""
    return abs(count - expected) < 5 * max(expected, 1) ** 0.5


@pytest.mark.parametrize("kind", GOLDEN)
def test_the_accesses_of_a_seed_never_change(kind: str) -> None:
    spec, expected = GOLDEN[kind]
    assert hash_of(kind, **spec) == expected


def test_the_same_without_numba() -> None:
    """The compiled source, run as plain Python."""
    small = {"accesses": 3000, "nr_pages": 257}
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import test_workloads as t\n"
        f"print([t.hash_of(kind, **spec, **{small}) for kind, (spec, _) in t.GOLDEN.items()])\n"
    )
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, os.path.dirname(__file__)],
        env=os.environ | {"NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.stdout.strip(), ran.stderr) == (
        str([hash_of(kind, **spec, **small) for kind, (spec, _) in GOLDEN.items()]),
        "",
    )


def test_the_generator_is_splitmix64() -> None:
    """First outputs of the reference implementation for the seed 1234567."""
    gamma = 0x9E3779B97F4A7C15
    outputs = [mixed((1234567 + n * gamma) % (1 << 64)) for n in (1, 2, 3)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    with np.errstate(over="ignore"):
        assert [int(mix(np.uint64((1234567 + n * gamma) % (1 << 64)))) for n in (1, 2, 3)] == outputs


@pytest.mark.parametrize("kind", GOLDEN)
def test_share_of_writes(kind: str) -> None:
    _, writes = accesses_of(kind, **GOLDEN[kind][0])
    assert near(int(writes.sum()), 25_000)


def test_uniform_takes_all_pages_alike() -> None:
    pages, _ = accesses_of("uniform")
    counts = np.bincount(pages, minlength=1000)
    assert len(counts) == 1000
    assert all(near(count, 100) for count in counts)


@given(nr_pages=st.integers(1, 50), stride=st.integers(1, 60))
def test_scan_visits_every_page_once_a_round(nr_pages: int, stride: int) -> None:
    pages, _ = accesses_of("scan", nr_pages=nr_pages, stride_pages=stride, accesses=3 * nr_pages)
    one_round = [page for start in range(min(stride, nr_pages)) for page in range(start, nr_pages, stride)]
    assert pages.tolist() == 3 * one_round
    assert sorted(one_round) == list(range(nr_pages))


def test_hotset_shares_out_accesses_exactly() -> None:
    pages, _ = accesses_of("hotset", **HOTSET)
    from_start = (pages.astype(np.int64).reshape(10, 10_000) - 300 * np.arange(10)[:, None]) % 1000
    for period in from_start:
        assert near(int((period >= 100).sum()), 1000)
        assert all(near(count, 90) for count in np.bincount(period[period < 100], minlength=100))
    cold = from_start[from_start >= 100]
    assert all(near(count, 100 / 9) for count in np.bincount(cold - 100, minlength=900))


def test_hotset_that_is_all_the_memory() -> None:
    pages, _ = accesses_of("hotset", **HOTSET | {"hot_pages": 1000, "hot_access_permille": 10})
    assert all(near(count, 100) for count in np.bincount(pages, minlength=1000))


def test_hotset_that_stays() -> None:
    pages, _ = accesses_of("hotset", **HOTSET | {"move_pages": 0, "hot_access_permille": 1000})
    assert sorted(Counter(pages.tolist())) == list(range(100))


def test_replay_repeats_from_the_beginning() -> None:
    recorded = {"r": np.array([2, 5, 8, 11], dtype=np.uint32)}
    pages, writes = accesses_of("replay", recorded, nr_pages=6, accesses="r", repeat=3, start=3)
    assert pages.tolist() == [5, 1, 2, 4, 5, 1, 2, 4, 5]
    assert writes.tolist() == [1, 0, 1, 0, 1, 0, 1, 0, 1]
    pages, _ = accesses_of("replay", recorded, nr_pages=6, accesses="r", repeat=1, start=4)
    assert pages.tolist() == []


def test_replay_refuses_what_does_not_fit() -> None:
    recorded = {"r": np.array([2, 5], dtype=np.uint32), "wide": np.zeros(3, dtype=np.int64)}
    spec = {"nr_pages": 3, "accesses": "r", "repeat": 1, "start": 0}
    with pytest.raises(TraceError, match=r"^r: page 2 of 2 pages$"):
        accesses_of("replay", recorded, **spec | {"nr_pages": 2})
    with pytest.raises(TraceError, match=r"^wide: accesses are int64, not uint32$"):
        accesses_of("replay", recorded, **spec | {"accesses": "wide"})
    with pytest.raises(ConfigError, match=r"^workload replay: start: found 3; the recording has 2$"):
        accesses_of("replay", recorded, **spec | {"start": 3})


@pytest.mark.parametrize(
    ("kind", "wrong", "text"),
    [
        ("uniform", {"nr_pages": 0}, "workload uniform: nr_pages: found 0; allowed: 1 to 2147483647"),
        ("uniform", {"nr_pages": 1.5}, "workload uniform: nr_pages: found 1.5; allowed: 1 to 2147483647"),
        (
            "uniform",
            {"write_permille": 1001},
            "workload uniform: write_permille: found 1001; allowed: 0 to 1000",
        ),
        (
            "hotset",
            HOTSET | {"hot_pages": 1001},
            "workload hotset: hot_pages: found 1001; allowed: 1 to 1000",
        ),
        ("zipf", {"theta_permille": -1}, "workload zipf: theta_permille: found -1; allowed: 0 to 4000"),
    ],
)
def test_values_out_of_range(kind: str, wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as error:
        accesses_of(kind, **wrong)
    assert str(error.value) == text


def test_an_unknown_kind() -> None:
    with pytest.raises(
        ConfigError, match="'zip': unknown; allowed: zipf, uniform, scan, hotset, gpu, messages"
    ):
        open_stream({"kind": "zip"}, {})
