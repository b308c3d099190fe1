"""Chains of granules, compiled; see granules.py.

Granules are numbered from 1, and 0 (NIL) ends a chain: so the link array may start as zero pages, and memory
that was never used costs nothing. state is int64[3]: head of the free chain, free granules (those never used
included), granules ever used. next_ has the link of granule g at g.
"""

from __future__ import annotations

import numpy as np
from numba import njit

NIL = 0


@njit(cache=True)
def take(state, next_, nrs, firsts):
    """Chains of nrs[i] granules into firsts[i] (NIL for none). Freed granules go first, the last freed one
    foremost, then those never used. The caller knows that there are enough.
    """
    for i in range(len(nrs)):
        first = np.int64(NIL)
        last = np.int64(NIL)
        for _ in range(nrs[i]):
            granule = state[0]
            if granule != NIL:
                state[0] = next_[granule]
            else:
                state[2] += 1
                granule = state[2]
            if last == NIL:
                first = granule
            else:
                next_[last] = granule
            last = granule
        if last != NIL:
            next_[last] = NIL
        state[1] -= nrs[i]
        firsts[i] = first


@njit(cache=True)
def give(state, next_, firsts):
    """Put whole chains in front of the free chain; returns how many granules they had."""
    total = 0
    for i in range(len(firsts)):
        first = np.int64(firsts[i])
        if first == NIL:
            continue
        last = first
        nr = 1
        while next_[last] != NIL:
            last = np.int64(next_[last])
            nr += 1
        next_[last] = state[0]
        state[0] = first
        state[1] += nr
        total += nr
    return total


@njit(cache=True)
def count_uses(next_, first, used, uses):
    """Add 1 to `uses` (uint8) at each granule of a chain. False when the chain leaves [1, used] or meets a granule
    that has been counted before.
    """
    granule = np.int64(first)
    while granule != NIL:
        if granule < 1 or granule > used or uses[granule]:
            return False
        uses[granule] += 1
        granule = np.int64(next_[granule])
    return True


@njit(cache=True)
def scatter(next_, memory, firsts, lengths, data):
    """Blocks of `data` (uint8, one after the other, lengths[i] for page i) into the granules of each page's chain,
    each block from the start of a granule; what is left of a block's last granule is zeroed. False when a chain is
    too short.
    """
    granule_bytes = memory.shape[1]
    at = 0
    for i in range(len(firsts)):
        granule = np.int64(firsts[i])
        for b in range(lengths.shape[1]):
            left = lengths[i, b]
            while left > 0:
                if granule == NIL:
                    return False
                nr = min(left, granule_bytes)
                for k in range(nr):
                    memory[granule, k] = data[at + k]
                for k in range(nr, granule_bytes):
                    memory[granule, k] = 0
                at += nr
                left -= nr
                granule = np.int64(next_[granule])
    return True


@njit(cache=True)
def gather(next_, memory, firsts, lengths, data):
    """The inverse of `scatter`; False when a chain is too short."""
    granule_bytes = memory.shape[1]
    at = 0
    for i in range(len(firsts)):
        granule = np.int64(firsts[i])
        for b in range(lengths.shape[1]):
            left = lengths[i, b]
            while left > 0:
                if granule == NIL:
                    return False
                nr = min(left, granule_bytes)
                for k in range(nr):
                    data[at + k] = memory[granule, k]
                at += nr
                left -= nr
                granule = np.int64(next_[granule])
    return True


@njit(cache=True)
def wipe(next_, memory, firsts):
    """Zero all granules of these chains."""
    for i in range(len(firsts)):
        granule = np.int64(firsts[i])
        while granule != NIL:
            for k in range(memory.shape[1]):
                memory[granule, k] = 0
            granule = np.int64(next_[granule])


@njit(cache=True)
def walk_all(next_, firsts, out):
    """The granules of all these chains, one after the other, into `out`; returns how many there are, or -1 when
    they do not fit.
    """
    nr = 0
    for i in range(len(firsts)):
        granule = np.int64(firsts[i])
        while granule != NIL:
            if nr == len(out):
                return -1
            out[nr] = granule
            granule = np.int64(next_[granule])
            nr += 1
    return nr
