"""Access generators, compiled loops. Each draw is a function of (seed, number of the access), so a stream's
state is one count.

Random bits are splitmix64 (Steele, Lea and Flood, OOPSLA 2014). All decisions are on integers. uint64 arithmetic
wraps on purpose; without numba, callers silence numpy's warning of it.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_S27, _S30, _S31, _S32 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)
_PERMILLE = np.uint64(1000)


@njit(cache=True)
def draw(seed, number):
    """64 random bits of access `number`; `seed` uint64."""
    x = seed + np.uint64(number) * _GOLDEN
    x = (x ^ (x >> _S30)) * _MIX_1
    x = (x ^ (x >> _S27)) * _MIX_2
    return x ^ (x >> _S31)


@njit(cache=True)
def below(bits, limit):
    """A number under `limit` from 32 random bits (uint64): the high half of a product, Lemire 2019 without
    rejection.
    """
    return (bits * np.uint64(limit)) >> _S32


@njit(cache=True)
def fill_zipf(out, count, first, seed, threshold, alias, multiplier, offset, write_permille):
    """Ranks by Walker's alias method (threshold uint32, alias int32), scattered over pages by an affine
    permutation.
    """
    nr_pages = np.uint64(len(alias))
    for i in range(count):
        bits = draw(seed, 2 * (first + i))
        column = np.int64(below(bits >> _S32, nr_pages))
        rank = column if (bits & _LOW) < np.uint64(threshold[column]) else np.int64(alias[column])
        page = (np.uint64(rank) * multiplier + offset) % nr_pages
        write = _is_write(seed, first + i, write_permille)
        out[i] = np.uint32(page << np.uint64(1)) | write


@njit(cache=True)
def fill_uniform(out, count, first, seed, nr_pages, write_permille):
    """Every page alike."""
    for i in range(count):
        page = below(draw(seed, 2 * (first + i)) >> _S32, nr_pages)
        out[i] = np.uint32(page << np.uint64(1)) | _is_write(seed, first + i, write_permille)


@njit(cache=True)
def fill_scan(out, count, first, seed, nr_pages, stride, write_permille):
    """Pages in order of stride, round and round; each round starts one page later when the stride divides the
    size.
    """
    per_round = (nr_pages + stride - 1) // stride
    for i in range(count):
        number = first + i
        page = (number % per_round * stride + number // per_round % stride) % nr_pages
        out[i] = np.uint32(page << 1) | _is_write(seed, number, write_permille)


@njit(cache=True)
def fill_hotset(
    out, count, first, seed, nr_pages, hot_pages, hot_permille, period, move_pages, write_permille
):
    """A hot range takes `hot_permille` of the accesses; every `period` accesses it starts `move_pages` later."""
    for i in range(count):
        number = first + i
        bits = draw(seed, 2 * number)
        if below(bits & _LOW, 1000) < np.uint64(hot_permille):
            page = (np.int64(below(bits >> _S32, hot_pages)) + number // period * move_pages) % nr_pages
        else:
            page = np.int64(below(bits >> _S32, nr_pages))
        out[i] = np.uint32(page << 1) | _is_write(seed, number, write_permille)


@njit(cache=True)
def _is_write(seed, number, write_permille):
    bits = draw(seed, 2 * number + 1)
    if below(bits >> _S32, 1000) < np.uint64(write_permille):
        return np.uint32(1)
    return np.uint32(0)


@njit(cache=True)
def alias_table(weights, threshold, alias):
    """Walker's alias table (Vose 1991) in integers.

    weights    int64[n]; 16 times their sum, and n times each, below 2**63
    threshold  uint32[n], out: column k gives k below it, else alias[k]
    alias      int32[n], out
    """
    nr = len(weights)
    total = np.int64(0)
    for k in range(nr):
        total += weights[k]
    left = weights * nr
    small = np.empty(nr, dtype=np.int64)
    large = np.empty(nr, dtype=np.int64)
    nr_small = nr_large = 0
    for k in range(nr):
        if left[k] < total:
            small[nr_small] = k
            nr_small += 1
        else:
            large[nr_large] = k
            nr_large += 1
    while nr_small and nr_large:
        nr_small -= 1
        low = small[nr_small]
        high = large[nr_large - 1]
        # left / total in units of 2**-32, four bits at a time so as not to leave 63 bits.
        share = np.int64(0)
        rest = left[low]
        for _ in range(8):
            rest *= 16
            share = share * 16 + rest // total
            rest %= total
        threshold[low] = np.uint32(share)
        alias[low] = high
        left[high] -= total - left[low]
        if left[high] < total:
            nr_large -= 1
            small[nr_small] = high
            nr_small += 1
    for i in range(nr_small):
        threshold[small[i]] = np.uint32(0xFFFFFFFF)
        alias[small[i]] = small[i]
    for i in range(nr_large):
        threshold[large[i]] = np.uint32(0xFFFFFFFF)
        alias[large[i]] = large[i]
