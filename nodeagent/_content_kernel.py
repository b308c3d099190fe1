"""Made-up page contents, compiled.

Random words are splitmix64 (Steele, Lea and Flood, OOPSLA 2014) as a counter-based generator: word i of a
stream is the mix of the stream's key and i, so any part of any page can be made alone. uint64 arithmetic
wraps on purpose; without numba, callers silence numpy's warning of it.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_S27, _S30, _S31 = np.uint64(27), np.uint64(30), np.uint64(31)
_S8, _BYTE = np.uint64(8), np.uint64(0xFF)

# Streams of one page, told apart by what is mixed into its key; change number v is stream _CHANGE + v.
_ZERO_DRAW, _RANDOM, _TEXT, _CHANGE = np.uint64(0), np.uint64(1), np.uint64(2), np.int64(16)
#: A line of text: what repeats in a page.
_TEXT_BYTES = 64
#: Changed bytes start on a cache line, as stores of a program do.
_LINE_BYTES = 64
_LETTERS, _FIRST_LETTER = 26, 97


@njit(cache=True)
def mix(x):
    """splitmix64's next output after the state x (uint64)."""
    x = x + _GOLDEN
    x = (x ^ (x >> _S30)) * _MIX_1
    x = (x ^ (x >> _S27)) * _MIX_2
    return x ^ (x >> _S31)


@njit(cache=True)
def fill_random(page, start, nr, key):
    """Bytes of the stream `key` into page[start:start + nr], round the page's end to its start."""
    word = np.uint64(0)
    for i in range(nr):
        if i & 7 == 0:
            word = mix(key + np.uint64(i >> 3) * _GOLDEN)
        page[(start + i) % len(page)] = np.uint8(word & _BYTE)
        word = word >> _S8


@njit(cache=True)
def fill_text(page, start, key):
    """A line of letters into page[start:], over and over."""
    end = min(start + _TEXT_BYTES, len(page))
    fill_random(page, start, end - start, key)
    for i in range(start, end):
        page[i] = np.uint8(_FIRST_LETTER + page[i] % _LETTERS)
    for i in range(end, len(page)):
        page[i] = page[i - _TEXT_BYTES]


@njit(cache=True)
def generate_pages(out, seed, zero_permille, random_bytes, changed_bytes, changes_max, index, version):
    """Fill out (uint8[n, 4096], zeros) with n pages; see content.py. seed uint64, index uint32[n], version
    uint16[n].
    """
    for row in range(len(out)):
        page = out[row]
        base = mix(seed ^ mix(np.uint64(index[row])))
        if mix(base ^ _ZERO_DRAW) % np.uint64(1000) >= np.uint64(zero_permille):
            fill_random(page, 0, random_bytes, mix(base ^ _RANDOM))
            fill_text(page, random_bytes, mix(base ^ _TEXT))
        last = np.int64(version[row])
        for change in range(max(1, last - changes_max + 1), last + 1):
            key = mix(base ^ np.uint64(_CHANGE + change))
            lines = np.uint64(len(page) // _LINE_BYTES)
            fill_random(page, np.int64(key % lines) * _LINE_BYTES, changed_bytes, key)
