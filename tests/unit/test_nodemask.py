"""Node masks against naive models on lists."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privmem.scheduler import nodemask

masks = st.integers(min_value=0, max_value=(1 << 12) - 1)
nids = st.integers(min_value=0, max_value=11)


def as_list(mask):
    return [n for n in range(64) if mask >> n & 1]


@given(masks)
def test_members_are_ascending_and_counted(mask):
    assert list(nodemask.nodes(mask)) == as_list(mask)
    assert nodemask.weight(mask) == len(as_list(mask))
    assert nodemask.first(mask) == min(as_list(mask), default=-1)
    assert nodemask.of(as_list(mask)) == mask


@given(nids, masks)
def test_next_in_wraps(nid, mask):
    members = as_list(mask)
    expected = min([n for n in members if n > nid] or members, default=-1)
    assert nodemask.next_in(nid, mask) == expected


@given(masks, masks, masks)
def test_remap_follows_positions(mask, old, new):
    """bitmap_remap: a member of `old` goes to the same position of `new`, modulo; others stay."""
    olds, news = as_list(old), as_list(new)
    expected = {news[olds.index(n) % len(news)] if n in olds and news else n for n in as_list(mask)}
    assert as_list(nodemask.remap(mask, old, new)) == sorted(expected)


@given(masks, masks)
def test_onto_picks_by_position(orig, relmap):
    members = as_list(relmap)
    expected = [members[n] for n in as_list(orig) if n < len(members)]
    assert as_list(nodemask.onto(orig, relmap)) == expected


@given(masks, st.integers(min_value=1, max_value=12))
def test_fold_is_modulo(orig, size):
    assert as_list(nodemask.fold(orig, size)) == sorted({n % size for n in as_list(orig)})


def test_fold_to_nothing_is_our_mistake():
    with pytest.raises(ValueError, match="size 0"):
        nodemask.fold(1, 0)


@given(masks)
def test_format_and_parse_are_inverse(mask):
    assert nodemask.parse(nodemask.format_list(mask)) == mask
    assert nodemask.parse(nodemask.format_list(mask, ranges=False)) == mask


@pytest.mark.parametrize(
    ("text", "mask"), [("-", 0), ("", 0), ("0,2", 0b101), ("0-3", 0b1111), (" 1-2,5 ", 0b100110)]
)
def test_parse(text, mask):
    assert nodemask.parse(text) == mask


@pytest.mark.parametrize("text", ["a", "3-1", "1-", "-1", "64", "0,,1", "0x1", "٣"])
def test_parse_refuses(text):
    with pytest.raises(ValueError, match=r"node list|range of nodes"):
        nodemask.parse(text)


def test_format():
    assert nodemask.format_list(0b1011011) == "0-1,3-4,6"
    assert nodemask.format_list(0b1011, ranges=False) == "0,1,3"
    assert nodemask.format_list(0) == "-"


def test_nth_and_ordinal():
    assert [nodemask.nth(0b10110, n) for n in range(4)] == [1, 2, 4, -1]
    assert [nodemask.ordinal_of(0b10110, n) for n in range(5)] == [-1, 0, 1, -1, 2]
