"""Chains of granules, compiled; see granules.py."""

from __future__ import annotations

import numpy as np
from numba import njit

NIL = -1


@njit(cache=True)
def take(state, next_, nr):
    """Cut `nr` granules off the free chain; returns the first. state: int64[2], head of the free chain and
    its length.
    """
    first = state[0]
    last = first
    for _ in range(nr - 1):
        last = np.int64(next_[last])
    state[0] = next_[last]
    state[1] -= nr
    next_[last] = NIL
    return first


@njit(cache=True)
def give(state, next_, first):
    """Put a whole chain in front of the free chain; returns its length."""
    nr = 1
    last = np.int64(first)
    while next_[last] != NIL:
        last = np.int64(next_[last])
        nr += 1
    next_[last] = state[0]
    state[0] = first
    state[1] += nr
    return nr
