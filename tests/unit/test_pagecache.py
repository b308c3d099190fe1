"""Objects that mappings share: policies by range, inode numbers, snapshots."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privmem.nodeagent.host.pagecache import INO_BATCH, PageCache
from privmem.scheduler import plain
from privmem.scheduler.abi import Mpol
from privmem.scheduler.errors import InvariantError
from privmem.scheduler.mempolicy import Mempolicy

PAGES = 24


def policy(nodes):
    return Mempolicy(Mpol.BIND, 0, nodes, 0b1111) if nodes else None


ranges = st.tuples(st.integers(0, PAGES - 1), st.integers(1, PAGES), st.integers(0, 15))


@given(st.lists(ranges, max_size=8))
def test_shared_policies_against_one_slot_a_page(changes):
    holder = PageCache().create_shmem("object", PAGES, 0)
    naive = [None] * PAGES
    for start, length, nodes in changes:
        end = min(start + length, PAGES)
        holder.set_policy(start, end, policy(nodes))
        naive[start:end] = [policy(nodes)] * (end - start)
    assert [holder.policy_at(index) for index in range(PAGES)] == naive
    edges = [edge for low, high, _ in holder.policies for edge in (low, high)]
    assert edges == sorted(edges)


def test_inode_numbers_come_in_batches_by_cpu():
    cache = PageCache()
    made = [cache.create_shmem("object", 1, cpu).ino for cpu in (0, 0, 1, 0, 1)]
    assert made == [1, 2, 1024, 3, 1025]
    cache.next_ino[0] = INO_BATCH
    assert cache.create_shmem("object", 1, 0).ino == 2 * INO_BATCH
    assert cache.create_file("f", 1).ino == 0


def test_moves_are_checked():
    cache = PageCache()
    holder = cache.create_file("f", 4)
    holder.pages[2] = 77
    cache.moved(holder.object_id, 2, 77, 99)
    assert holder.pages == {2: 99}
    with pytest.raises(InvariantError, match="not in frame 77"):
        cache.moved(holder.object_id, 2, 77, 5)
    with pytest.raises(InvariantError, match="cached pages"):
        cache.forget(holder.object_id)


def test_snapshot_round_trip():
    cache = PageCache()
    cache.create_file("f0", 8, source=3).pages.update({5: 40, 1: 41})
    shared = cache.create_shmem("object", 16, 1)
    shared.set_policy(2, 9, policy(0b11))
    shared.vma_pages = 16
    copy = PageCache()
    copy.restore(plain.unpack(*plain.pack(cache.snapshot())))
    assert copy.snapshot() == cache.snapshot()
    assert copy.of(2).policy_at(8) == policy(0b11)
    assert copy.create_shmem("object", 1, 1).ino == 2
