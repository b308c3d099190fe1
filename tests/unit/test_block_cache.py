"""The block cache of a compressed node: what the compiled loop counts is what a dictionary says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privmem.nodeagent.host._access_kernel import run_accesses
from privmem.nodeagent.host.block_cache import BlockCaches
from privmem.nodeagent.host.layout import PTE_PFN_SHIFT, PTE_PRESENT, STOP_END
from privmem.nodeagent.host.memory import NodeSpec

PAGES = 64


def caches(lines, miss_ns=800):
    plain = NodeSpec(0, "d0", PAGES, PAGES, 100, 100, False, False, False, 0, 0)
    return BlockCaches(
        [plain, NodeSpec(1, "d1", PAGES, PAGES, 1000, 1000, True, True, False, 0, 0, lines, miss_ns)]
    )


def access(caches, pages, nid=1):
    """Read pages (frames of the same number) that are all on one node: ns."""
    pte = ((np.arange(PAGES, dtype=np.uint32) << PTE_PFN_SHIFT) | PTE_PRESENT).astype(np.uint32)
    batch = np.array(pages, dtype=np.uint32) << np.uint32(1)
    cost, counts = np.full((64, 2), 200, dtype=np.int64), np.zeros((64, 2), dtype=np.int64)
    nodes = np.full(1, nid, dtype=np.int64)
    tags = caches.tags if len(caches.tags) else None
    done, spent, why = run_accesses(
        pte, batch, 0, len(batch), 0, nodes, cost, 1 << 60, counts, caches.place, tags, caches.looked
    )
    assert (done, why) == (len(pages), STOP_END)
    return spent


def test_a_hit_waits_for_no_decompression():
    cache = caches(8)
    assert [access(cache, [3]), access(cache, [3]), access(cache, [11]), access(cache, [3])] == [
        1000,
        200,
        1000,
        1000,
    ]
    assert cache.looked[1].tolist() == [1, 3]


def test_other_nodes_and_nodes_without_a_cache_have_none():
    cache = caches(8)
    assert access(cache, [3, 3, 3], nid=0) == 600
    assert access(caches(0), [3, 3]) == 400  # what decompression adds is in the cost, where there is no cache
    assert not cache.looked.any()


def test_a_page_that_is_stored_anew_is_not_in_it():
    cache = caches(8)
    access(cache, [3, 4])
    cache.forget(1, np.array([3, 12], dtype=np.int32))  # 12 shares the line of 4, and is not there
    assert [access(cache, [3]), access(cache, [4])] == [1000, 200]
    cache.forget(0, np.array([4], dtype=np.int32))
    assert access(cache, [4]) == 200


@given(st.lists(st.integers(0, PAGES - 1), max_size=200), st.integers(1, 80))
def test_as_a_dictionary_says(pages, lines):
    cache, held = caches(lines), {}
    misses = 0
    for page in pages:
        misses += held.get(page % lines) != page
        held[page % lines] = page
    assert access(cache, pages) == 200 * len(pages) + 800 * misses
    assert cache.looked[1].tolist() == [len(pages) - misses, misses]
    again = caches(lines)
    again.restore(cache.snapshot())
    assert np.array_equal(again.tags, cache.tags) and np.array_equal(again.looked, cache.looked)


@pytest.mark.parametrize("cache_pages", [0, 64])
def test_a_host_reads_compressed_pages_faster_with_one(rack, stream, cache_pages):
    fill = [(page, True) for page in range(700)]
    first = rack([stream(700, fill)])
    first.run()
    page = first.nodes_of().index(2)
    r = rack([stream(700, [*fill, *[(page, False)] * 100])], cache_pages=cache_pages)
    before = first.host.programs[0].access_ns
    r.run()
    reads = r.host.programs[0].access_ns - before
    assert reads == (100 * 1000 if not cache_pages else 1000 + 99 * 200)
    numbers = r.host._node_numbers(r.memory.nodes[2])
    assert [numbers["block_cache_hits"], numbers["block_cache_misses"]] == (
        [99, 1] if cache_pages else [0, 0]
    )
