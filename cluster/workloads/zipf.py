"""The Zipf distribution as an integer table that comes out alike on every CPU.

The k-th most popular of n pages is drawn in proportion to k ** -theta. Powers and logarithms of a C library
differ in the last bit between CPUs and versions. So k ** -theta is worked out here with additions,
multiplications, divisions and shifts of the exponent alone, which IEEE 754 defines to the bit, and sums are
taken in a stated order. What is rounded to integers afterwards is exact: the probabilities of the table are
multiples of 2**-32 / n that sum to 1.
"""

from __future__ import annotations

import math

import numpy as np

from privmem.cluster.workloads._workload_kernel import COLUMN, alias_table

_GAMMA = 0x9E3779B97F4A7C15
_LN2 = 0.6931471805599453
_SQRT_HALF = 0.7071067811865476
#: Ranks worked out at a time: temporaries stay small.
_BLOCK = 1 << 16


def zipf_table(nr_pages: int, theta_permille: int, key: int) -> np.ndarray:
    """The table that `fill_zipf` draws from, uint64[nr_pages]; `key` scatters the ranks over the pages."""
    table = np.empty(nr_pages, dtype=np.uint64)
    left = np.empty(nr_pages, dtype=np.int64)
    left[page_of_rank(nr_pages, key)] = column_shares(nr_pages, theta_permille)
    with np.errstate(over="ignore"):
        alias_table(left, table)
    return table


def column_shares(nr_pages: int, theta_permille: int) -> np.ndarray:
    """What each rank, from the most popular, gets of n * COLUMN: int64[n] that sums to exactly that."""
    weights = zipf_weights(nr_pages, theta_permille)
    # fsum rounds once, whatever the order; each block's running sum has a fixed order.
    total = math.fsum(
        float(np.add.accumulate(weights[at : at + _BLOCK])[-1]) for at in range(0, nr_pages, _BLOCK)
    )
    shares = np.rint(weights * (nr_pages * float(COLUMN) / total)).astype(np.int64)
    shares[0] += nr_pages * COLUMN - int(shares.sum())
    return shares


def zipf_weights(nr_pages: int, theta_permille: int) -> np.ndarray:
    """k ** -theta of ranks 1 to n, float64, within a few units of the last place."""
    theta = theta_permille / 1000
    weights = np.empty(nr_pages, dtype=np.float64)
    for at in range(0, nr_pages, _BLOCK):
        ranks = np.arange(at + 1, min(at + _BLOCK, nr_pages) + 1, dtype=np.float64)
        weights[at : at + len(ranks)] = _exp_of_minus(theta * _log(ranks))
    return weights


def page_of_rank(nr_pages: int, key: int) -> np.ndarray:
    """A permutation of the pages, int64[n]: popular pages are not neighbours, as in a program's heap."""
    state = np.arange(nr_pages, dtype=np.uint64)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(_GAMMA) + np.uint64(key)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(state ^ (state >> np.uint64(31)), kind="stable")


def _log(x: np.ndarray) -> np.ndarray:
    """Natural logarithm of x >= 1: log m = 2 artanh((m - 1) / (m + 1)) of a mantissa around 1."""
    mantissa, exponent = np.frexp(x)
    low = mantissa < _SQRT_HALF
    mantissa = np.where(low, 2.0 * mantissa, mantissa)
    exponent = exponent - low
    z = (mantissa - 1.0) / (mantissa + 1.0)
    square = z * z  # at most 0.0295: eleven terms leave less than 2**-56
    total = np.zeros_like(z)
    for odd in range(21, 0, -2):
        total = total * square + 1.0 / odd
    return exponent * _LN2 + 2.0 * z * total


def _exp_of_minus(y: np.ndarray) -> np.ndarray:
    """exp(-y) of y >= 0: halvings by the exponent, the rest, at most ln 2 / 2 either way, by the series."""
    halvings = np.rint(y / _LN2)
    rest = halvings * _LN2 - y
    total = np.ones_like(rest)
    for term in range(15, 0, -1):
        total = 1.0 + rest / term * total
    return np.ldexp(total, -halvings.astype(np.int32))
