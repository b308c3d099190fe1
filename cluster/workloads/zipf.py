"""The Zipf distribution as integer tables that come out alike on every CPU.

The k-th most popular of n pages is drawn in proportion to k ** -theta. Library powers and logarithms differ
in the last bit between CPUs, so k ** -theta is worked out here with additions, multiplications and divisions
alone, which IEEE 754 defines to the bit, and then rounded to integers.
"""

from __future__ import annotations

from math import gcd

import numpy as np

from privmem.cluster.workloads._workload_kernel import alias_table

_LN2 = 0.6931471805599453
#: Weight of the most popular page. 2**30 of them, times 2**30 pages, stay inside 63 bits.
_TOP_WEIGHT = 1 << 30


def zipf_weights(nr_pages: int, theta_permille: int) -> np.ndarray:
    """Integer weights, int64, of ranks 1 to n: at least 1, at most 2**30."""
    theta = theta_permille / 1000
    exponent = -theta * _log2(np.arange(1, nr_pages + 1, dtype=np.float64))
    return np.maximum(1, np.floor(_exp2(exponent) * _TOP_WEIGHT)).astype(np.int64)


def zipf_table(nr_pages: int, theta_permille: int) -> tuple[np.ndarray, np.ndarray]:
    """(threshold uint32, alias int32) for `fill_zipf`."""
    threshold = np.zeros(nr_pages, dtype=np.uint32)
    alias = np.zeros(nr_pages, dtype=np.int32)
    alias_table(zipf_weights(nr_pages, theta_permille), threshold, alias)
    return threshold, alias


def scatter(nr_pages: int, seed: int) -> tuple[int, int]:
    """(multiplier, offset) of a permutation page = rank * multiplier + offset mod n that takes popular pages
    apart.
    """
    multiplier = max(1, nr_pages * 618 // 1000) | 1
    while gcd(multiplier, nr_pages) != 1:
        multiplier += 2
    return multiplier, seed % nr_pages


def _log2(x: np.ndarray) -> np.ndarray:
    """Logarithm to base 2: exponent, and the series of artanh for the mantissa, which is in [0.5, 1)."""
    mantissa, exponent = np.frexp(x)
    z = (mantissa - 1.0) / (mantissa + 1.0)
    square = z * z
    total = np.zeros_like(z)
    for k in range(41, 0, -2):
        total = total * square + 1.0 / k
    return exponent + 2.0 * z * total / _LN2


def _exp2(y: np.ndarray) -> np.ndarray:
    """2 ** y: whole part by the exponent field, the rest by the series of exp."""
    whole = np.floor(y)
    rest = (y - whole) * _LN2
    total = np.ones_like(rest)
    for k in range(20, 0, -1):
        total = 1.0 + total * rest / k
    return np.ldexp(total, whole.astype(np.int64))
