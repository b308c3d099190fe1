"""Access generators as compiled loops: access number i is a function of (key, i) alone, so a stream's state is
one count.

Random bits are splitmix64 (Steele, Lea and Flood, OOPSLA 2014) over a counter: access i has draws 2i (which
page) and 2i + 1 (hot or not, write or not). Every decision compares integers. uint64 arithmetic wraps on
purpose; without numba, numpy warns of a scalar that wraps, so callers hold `np.errstate(over="ignore")`.

`out` is uint32[n], of which each function fills all, with `page << 1 | is_write`; `first` is the number of the
access that goes to out[0]. Shares are limits on 32 random bits: uint64 from 0 (never) to 2**32 (always).
"""

from __future__ import annotations

import numpy as np
from numba import njit

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_LOW = np.uint64(0xFFFFFFFF)
_1, _2 = np.uint64(1), np.uint64(2)
_S27, _S30, _S31, _S32 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(32)

#: Height of a column of the alias table: what a column's own page and its alias share out.
COLUMN = 1 << 32


@njit(cache=True)
def mix(state):
    """splitmix64's output function: 64 random bits of a counter's state."""
    state = (state ^ (state >> _S30)) * _MIX_1
    state = (state ^ (state >> _S27)) * _MIX_2
    return state ^ (state >> _S31)


@njit(cache=True)
def _state(key, number):
    """The counter's state before the draws of access `number`; each draw adds _GAMMA first."""
    return key + _GAMMA * (_2 * np.uint64(number))


@njit(cache=True)
def _times(bits, limit):
    """bits / 2**64 * limit in units of 2**-32, rounded down: its upper half is a number under `limit`.

    limit is below 2**32. No rejection (Lemire 2019): a number's probability is off by less than 2**-64.
    """
    return (bits >> _S32) * limit + (((bits & _LOW) * limit) >> _S32)


@njit(cache=True)
def _pack(page, bits, write_limit):
    """A write, if the low half of the random bits is below the limit."""
    return np.uint32(page << _1 | np.uint64((bits & _LOW) < write_limit))


@njit(cache=True)
def fill_zipf(out, first, key, table, write_limit):
    """Pages by Walker's alias method; table uint64[nr_pages] as `alias_table` makes it."""
    nr_pages = np.uint64(len(table))
    state = _state(key, first)
    for i in range(len(out)):
        state += _GAMMA
        point = _times(mix(state), nr_pages)
        page = point >> _S32
        entry = table[page]
        # A product for a branch, which no processor could predict.
        page += ((entry >> _S32) - page) * np.uint64((point & _LOW) >= (entry & _LOW))
        state += _GAMMA
        out[i] = _pack(page, mix(state), write_limit)


@njit(cache=True)
def fill_uniform(out, first, key, nr_pages, write_limit):
    """Every page as likely as every other; nr_pages uint64."""
    state = _state(key, first)
    for i in range(len(out)):
        state += _GAMMA
        page = _times(mix(state), nr_pages) >> _S32
        state += _GAMMA
        out[i] = _pack(page, mix(state), write_limit)


@njit(cache=True)
def fill_scan(out, first, key, nr_pages, stride, write_limit):
    """Pages 0, stride, 2 stride, ..., then 1, 1 + stride, ...: each page once in nr_pages accesses.

    nr_pages, stride int64.
    """
    state = _state(key, first)
    # Passes that start below `nr_long` have one page more than the others.
    position = first % nr_pages
    short, nr_long = nr_pages // stride, nr_pages % stride
    if position < nr_long * (short + 1):
        start = position // (short + 1)
        page = start + position % (short + 1) * stride
    else:
        position -= nr_long * (short + 1)
        start = nr_long + position // short
        page = start + position % short * stride
    for i in range(len(out)):
        state += _GAMMA + _GAMMA
        out[i] = _pack(np.uint64(page), mix(state), write_limit)
        page += stride
        if page >= nr_pages:
            start += 1
            if start == min(stride, nr_pages):
                start = 0
            page = start


@njit(cache=True)
def fill_hotset(out, first, key, nr_pages, hot_pages, hot_limit, period, move_pages, write_limit):
    """A hot range, and the pages outside it; every `period` accesses the range starts `move_pages` later.

    nr_pages, hot_pages, period, move_pages int64, nr_pages below 2**31.
    """
    state = _state(key, first)
    start = first // period % nr_pages * (move_pages % nr_pages) % nr_pages
    until_move = period - first % period
    nr_all, nr_hot, nr_cold = np.uint64(nr_pages), np.uint64(hot_pages), np.uint64(nr_pages - hot_pages)
    for i in range(len(out)):
        if until_move == 0:
            start = (start + move_pages) % nr_pages
            until_move = period
        until_move -= 1
        state += _GAMMA
        where = mix(state)
        state += _GAMMA
        what = mix(state)
        is_cold = np.uint64((what >> _S32) >= hot_limit)
        page = np.uint64(start) + is_cold * nr_hot
        page += _times(where, nr_hot + is_cold * (nr_cold - nr_hot)) >> _S32
        page -= nr_all * np.uint64(page >= nr_all)
        out[i] = _pack(page, what, write_limit)


@njit(cache=True)
def alias_table(left, table):
    """Walker's alias table (Vose 1991) in integers, without rounding.

    left   int64[n] >= 0, sum n * COLUMN: what each page is to get; consumed
    table  uint64[n], out: alias page << 32 | what column k keeps for page k, of COLUMN. A column that is all
           its own names itself as the alias, so what it keeps does not matter.
    """
    nr = len(left)
    # One array, small columns from the front, large from the back: together never more than n.
    stack = np.empty(nr, dtype=np.int64)
    nr_small, nr_large = 0, 0
    for k in range(nr - 1, -1, -1):
        if left[k] < COLUMN:
            stack[nr_small] = k
            nr_small += 1
        else:
            nr_large += 1
            stack[nr - nr_large] = k
    while nr_small > 0:
        nr_small -= 1
        low, high = stack[nr_small], stack[nr - nr_large]
        table[low] = np.uint64(high) << _S32 | np.uint64(left[low])
        left[high] -= COLUMN - left[low]
        if left[high] < COLUMN:
            nr_large -= 1
            stack[nr_small] = high
            nr_small += 1
    for k in range(nr):
        if left[k] >= COLUMN:
            table[k] = np.uint64(k) << _S32
