"""Sets of nodes as Python ints: bit n stands for node n.

Models `include/linux/nodemask.h` and the bitmap operations behind it (`lib/bitmap.c`, Linux 6.1). A mask
here has no width: operations that wrap or fold take the positions from their arguments, so the kernel's
MAX_NUMNODES does not show.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from privmem.scheduler.abi import MAX_NUMNODES

EMPTY = 0


def of(nids: Iterable[int]) -> int:
    """The set of these nodes."""
    mask = 0
    for nid in nids:
        mask |= 1 << nid
    return mask


def nodes(mask: int) -> Iterator[int]:
    """The members, ascending (`for_each_node_mask`)."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def has(mask: int, nid: int) -> bool:
    """`node_isset`."""
    return nid >= 0 and bool(mask >> nid & 1)


def is_subset(inner: int, outer: int) -> bool:
    """`nodes_subset`."""
    return inner & ~outer == 0


def weight(mask: int) -> int:
    """`nodes_weight`: how many members."""
    return mask.bit_count()


def first(mask: int) -> int:
    """`first_node`; -1 for the empty set."""
    return (mask & -mask).bit_length() - 1


def next_in(nid: int, mask: int) -> int:
    """`next_node_in`: the first member after `nid`, wrapping around; -1 for the empty set."""
    above = mask >> (nid + 1) << (nid + 1)
    return first(above) if above else first(mask)


def nth(mask: int, ordinal: int) -> int:
    """`find_nth_bit`: the member number `ordinal`, counted from 0 upwards; -1 when there are not so many."""
    for position, nid in enumerate(nodes(mask)):
        if position == ordinal:
            return nid
    return -1


def ordinal_of(mask: int, nid: int) -> int:
    """`bitmap_pos_to_ord`: how many members are below `nid`; -1 when it is no member."""
    if not has(mask, nid):
        return -1
    return weight(mask & ((1 << nid) - 1))


def remap_node(nid: int, old: int, new: int) -> int:
    """`node_remap`: the node with the position in `new` (modulo its weight) that `nid` has in `old`; itself
    if it has none.
    """
    ordinal = ordinal_of(old, nid)
    size = weight(new)
    if ordinal < 0 or size == 0:
        return nid
    return nth(new, ordinal % size)


def remap(mask: int, old: int, new: int) -> int:
    """`nodes_remap`: every member of `mask` through `remap_node`."""
    return of(remap_node(nid, old, new) for nid in nodes(mask))


def onto(orig: int, relmap: int) -> int:
    """`nodes_onto`: bit n of `orig` sets the n-th member of `relmap`; bits beyond its weight vanish."""
    return of(nid for ordinal, nid in enumerate(nodes(relmap)) if has(orig, ordinal))


def fold(orig: int, size: int) -> int:
    """`nodes_fold`: each member modulo `size`."""
    if size <= 0:
        raise ValueError("a node mask cannot be folded to size 0")
    return of(nid % size for nid in nodes(orig))


def parse(text: str) -> int:
    """Parse `0,2-4` (`nodelist_parse`); `-` and the empty text are the empty set. Raises ValueError."""
    text = text.strip()
    if text in ("", "-"):
        return EMPTY
    mask = 0
    for part in text.split(","):
        low_text, dash, high_text = part.strip().partition("-")
        if not part.isascii() or not low_text.isdecimal() or (dash and not high_text.isdecimal()):
            raise ValueError(f"{text!r} is not a node list such as 0,2-4")
        low = int(low_text)
        high = int(high_text) if dash else low
        if high < low or high >= MAX_NUMNODES:
            raise ValueError(f"{part.strip()!r} is not a range of nodes below {MAX_NUMNODES}")
        mask |= of(range(low, high + 1))
    return mask


def format_list(mask: int, ranges: bool = True) -> str:
    """The text `parse` reads back; runs as `0-3` unless `ranges` is False; `-` for the empty set."""
    if not mask:
        return "-"
    if not ranges:
        return ",".join(str(nid) for nid in nodes(mask))
    runs: list[list[int]] = []
    for nid in nodes(mask):
        if runs and runs[-1][1] == nid - 1:
            runs[-1][1] = nid
        else:
            runs.append([nid, nid])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)
