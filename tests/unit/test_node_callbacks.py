"""Callbacks of a node's owner: what they say survives a checkpoint; the rules are in configs/litmus."""

from __future__ import annotations

from privmem.nodeagent.host.node_callbacks import Migrated, NodeCallbacks, ReclaimPolicy


def test_nothing_is_kept_of_an_owner_that_said_nothing():
    assert NodeCallbacks().snapshot() == {}


def test_what_was_said_survives_a_checkpoint():
    callbacks = NodeCallbacks()
    callbacks.policy[2] = ReclaimPolicy(may_swap=True, managed_watermarks=True)
    callbacks.boost_pages[2] = 64
    callbacks.migrated[3] = Migrated(calls=5, locked=5, copied=4, mapped=0)
    callbacks.keeps[2] = True
    callbacks.free_calls[2] = 3
    callbacks.kept[700] = 2
    restored = NodeCallbacks()
    restored.restore({"other": 1, **callbacks.snapshot()})
    assert (restored.policy, restored.boost_pages, restored.migrated) == (
        {2: ReclaimPolicy(True, False, True)},
        {2: 64},
        {3: Migrated(5, 5, 4, 0)},
    )
    assert (restored.keeps, restored.free_calls, restored.kept) == ({2: True}, {2: 3}, {700: 2})
    restored.restore({})
    assert restored.snapshot() == {}
