"""Made-up page contents, compiled. Random bits are splitmix64 of a counter (Steele, Lea, Flood, OOPSLA 2014).

uint64 arithmetic wraps on purpose; without numba, callers silence numpy's warning of it.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_S27, _S30, _S31 = np.uint64(27), np.uint64(30), np.uint64(31)
_TEXT_BYTES = 64


@njit(cache=True)
def mix(x):
    """splitmix64's hash of a uint64."""
    x = x + _GOLDEN
    x = (x ^ (x >> _S30)) * _MIX_1
    x = (x ^ (x >> _S27)) * _MIX_2
    return x ^ (x >> _S31)


@njit(cache=True)
def draw(a, b, c):
    """64 random bits of three numbers."""
    return mix(mix(mix(np.uint64(a)) ^ np.uint64(b)) ^ np.uint64(c))


@njit(cache=True)
def generate_page(out, seed, zero_permille, random_bytes, changed_bytes, index, version, changes_max):
    """Fill out (uint8[4096], zeros) with the page; see `content.py`."""
    size = len(out)
    if draw(seed, index, 0) % np.uint64(1000) >= np.uint64(zero_permille):
        for i in range(random_bytes):
            if i % 8 == 0:
                word = draw(seed, index, 1 + i // 8)
            out[i] = np.uint8((word >> np.uint64(8 * (i % 8))) & np.uint64(0xFF))
        for i in range(random_bytes, size):
            # Letters that depend on the page: a line of text, over and over.
            at = i % _TEXT_BYTES
            if i < random_bytes + _TEXT_BYTES:
                out[i] = np.uint8(97 + draw(seed, index, 1024 + at) % np.uint64(26))
            else:
                out[i] = out[i - _TEXT_BYTES]
    for change in range(max(1, version - changes_max + 1), version + 1):
        for i in range(changed_bytes):
            word = draw(seed + change, index, 4096 + i)
            out[np.int64(word % np.uint64(size))] = np.uint8((word >> np.uint64(32)) & np.uint64(0xFF))
