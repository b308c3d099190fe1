"""The Zipf table: against Python's own powers, and to the last bit."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privmem.cluster.workloads import open_stream
from privmem.cluster.workloads._workload_kernel import COLUMN
from privmem.cluster.workloads.zipf import column_shares, page_of_rank, zipf_table, zipf_weights


@pytest.mark.parametrize("theta_permille", [0, 1, 500, 990, 1000, 1234, 4000])
def test_weights_are_powers(theta_permille: int) -> None:
    weights = zipf_weights(70_000, theta_permille)
    ranks = [1, 2, 3, 4, 7, 100, 1023, 1024, 1025, 65_536, 65_537, 70_000]
    assert weights[0] == 1.0
    for rank in ranks:
        assert weights[rank - 1] == pytest.approx(rank ** (-theta_permille / 1000), rel=2e-14)


@pytest.mark.parametrize(
    ("nr_pages", "theta_permille", "expected"),
    [(4096, 990, "72b851eb86f59e83"), (100_003, 600, "19c6bb8c2335bc9c")],
)
def test_the_table_is_the_same_to_the_last_bit(nr_pages: int, theta_permille: int, expected: str) -> None:
    """On any CPU, with any numpy: a digest depends on it."""
    table = zipf_table(nr_pages, theta_permille, key=1)
    assert hashlib.blake2b(table.astype("<u8").tobytes(), digest_size=8).hexdigest() == expected


@given(nr_pages=st.integers(1, 300), theta_permille=st.integers(0, 4000), key=st.integers(0, (1 << 64) - 1))
def test_the_table_gives_each_page_exactly_its_share(nr_pages: int, theta_permille: int, key: int) -> None:
    shares = column_shares(nr_pages, theta_permille)
    pages = page_of_rank(nr_pages, key)
    table = zipf_table(nr_pages, theta_permille, key)
    kept, alias = table & np.uint64(COLUMN - 1), (table >> np.uint64(32)).astype(np.int64)
    got = [0] * nr_pages
    for page in range(nr_pages):
        own = COLUMN if alias[page] == page else int(kept[page])
        got[page] += own
        got[int(alias[page])] += COLUMN - own
    assert sum(got) == nr_pages * COLUMN
    assert [got[page] for page in pages.tolist()] == shares.tolist()
    assert sorted(pages.tolist()) == list(range(nr_pages))


def test_shares_follow_the_weights() -> None:
    shares, weights = column_shares(1000, 990), zipf_weights(1000, 990)
    exact = weights / weights.sum() * 1000 * COLUMN
    assert np.abs(shares - exact)[1:].max() <= 1
    assert abs(shares[0] - exact[0]) < 1000


def test_popular_pages_are_not_neighbours() -> None:
    pages = page_of_rank(10_000, key=3)
    assert np.abs(np.diff(pages[:50])).min() > 1
    assert pages[:50].tolist() != page_of_rank(10_000, key=4)[:50].tolist()


def test_draws_follow_the_table() -> None:
    spec = {"kind": "zipf", "nr_pages": 500, "theta_permille": 900, "write_permille": 0, "seed": 11}
    stream = open_stream(spec | {"accesses": 200_000}, {})
    out = np.empty(stream.total, dtype=np.uint32)
    stream.fill(out)
    counts = np.sort(np.bincount(out >> 1, minlength=500))[::-1]
    weights = np.array([rank**-0.9 for rank in range(1, 501)])
    expected = weights / weights.sum() * stream.total
    # Chi squared of 499 degrees of freedom: mean 499, standard deviation 32. Ordering the counts lowers it.
    assert ((counts - expected) ** 2 / expected).sum() < 600
