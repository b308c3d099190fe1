"""Claims on private nodes: what each version of the series answers to a driver."""

import errno

import pytest

from privmem.scheduler.abi import Feature
from privmem.scheduler.isolation.claims import (
    Answer,
    Held,
    NodeFacts,
    Ops,
    add_memory_error,
    claim_features,
    clear_ops,
    cpu_error,
    ops_error,
    register,
    register_caps,
    release_features,
    set_ops,
    unregister,
)

FREE = NodeFacts()
GENERAL = NodeFacts(general_memory=True)
ONLINE = NodeFacts(private_memory=True)
IMPOSSIBLE = NodeFacts(possible=False)
EINVAL, EBUSY, ENODEV = -errno.EINVAL, -errno.EBUSY, -errno.ENODEV
A = Held("np1")
F1_BITS = Feature.RECLAIM | Feature.DEMOTION | Feature.USER_NUMA | Feature.USER_WRITE


# -- the first version


@pytest.mark.parametrize(
    ("held", "owner", "facts", "answer"),
    [
        (None, "np1", FREE, Answer(0, A)),
        (A, "np1", FREE, Answer(0, A)),
        (A, "np1", ONLINE, Answer(0, A)),
        (A, "np2", FREE, Answer(EBUSY, A)),
        (None, None, FREE, Answer(EINVAL, None)),
        (A, None, FREE, Answer(EINVAL, A)),
        (None, "np1", IMPOSSIBLE, Answer(EINVAL, None)),
        (None, "np1", NodeFacts(ready=False), Answer(ENODEV, None)),
        (None, "np1", GENERAL, Answer(EBUSY, None)),
    ],
)
def test_register(held, owner, facts, answer):
    assert register(held, owner, facts) == answer


def test_unregister():
    assert unregister(None, FREE) == Answer(0, None)
    assert unregister(A, ONLINE) == Answer(EBUSY, A)
    assert unregister(A, FREE) == Answer(0, None)
    assert unregister(Held("np1", references=2), FREE) == Answer(0, None, waits=True)


BOTH = {"migrate_to": True, "folio_migrate": True}
MIGRATION, WRITE = Feature.MIGRATION, Feature.USER_WRITE


@pytest.mark.parametrize(
    ("flags", "callbacks", "error"),
    [
        (Feature.NONE, {}, 0),
        (MIGRATION, BOTH, 0),
        (MIGRATION, {"folio_migrate": True}, EINVAL),
        (MIGRATION, {"migrate_to": True}, EINVAL),
        (Feature.USER_NUMA | WRITE, BOTH, EINVAL),
        (Feature.USER_NUMA | WRITE | MIGRATION, BOTH, 0),
        (Feature.USER_NUMA | MIGRATION, BOTH, EINVAL),  # write-protected
        (Feature.NUMA_BALANCING, BOTH, EINVAL),
        (Feature.NUMA_BALANCING | MIGRATION, BOTH, 0),
        (Feature.COMPACTION, BOTH, EINVAL),
        (Feature.COMPACTION | MIGRATION, BOTH, 0),
        (Feature.RECLAIM, {}, 0),
        (Feature.DEMOTION, {}, 0),
        (Feature.LONGTERM_PIN, {}, 0),
    ],
)
def test_flags_of_ops_depend_on_each_other(flags, callbacks, error):
    ops = Ops("ops", flags, **callbacks)
    assert ops_error(ops) == error
    installed = Held("np1", flags, ops)
    assert set_ops(A, ops, FREE) == (Answer(error, A) if error else Answer(0, installed))


def test_set_ops_and_clear_ops():
    first, second = Ops("A", Feature.RECLAIM), Ops("B")
    installed = Held("np1", Feature.RECLAIM, first)
    assert set_ops(A, None, FREE) == Answer(EINVAL, A)
    assert set_ops(A, first, IMPOSSIBLE) == Answer(EINVAL, A)
    assert set_ops(None, first, FREE) == Answer(ENODEV, None)
    assert set_ops(A, first, FREE) == Answer(0, installed)
    assert clear_ops(installed, second) == Answer(EINVAL, installed)
    assert clear_ops(A, first) == Answer(EINVAL, A)
    assert clear_ops(None, first) == Answer(ENODEV, None)
    assert clear_ops(installed, first) == Answer(0, A)


def test_adding_memory_looks_at_owner_and_group():
    assert [add_memory_error("np1", True), add_memory_error(None, True)] == [0, EINVAL]
    assert add_memory_error("np1", False) == EINVAL


# -- caps-c


CAPS = Feature.PUBLIC | Feature.RECLAIM | Feature.DEMOTION | Feature.USER_NUMA
R = Held("x", Feature.RECLAIM)


@pytest.mark.parametrize(
    ("held", "owner", "features", "facts", "answer"),
    [
        (None, "x", Feature.RECLAIM, FREE, Answer(0, R)),
        (None, "x", Feature.RECLAIM, IMPOSSIBLE, Answer(EINVAL, None)),
        (None, None, Feature.NONE, FREE, Answer(0, None)),
        (None, None, Feature.NONE, GENERAL, Answer(0, None)),
        (R, None, Feature.NONE, FREE, Answer(EBUSY, R)),
        (R, "x", Feature.RECLAIM, ONLINE, Answer(0, R)),
        (R, "x", Feature.NONE, FREE, Answer(EBUSY, R)),
        (R, "y", Feature.RECLAIM, FREE, Answer(EBUSY, R)),
        (None, "x", Feature.RECLAIM, GENERAL, Answer(EBUSY, None)),
        (None, "x", Feature.DEMOTION, FREE, Answer(EINVAL, None)),
        (None, "x", Feature.PUBLIC | Feature.RECLAIM, FREE, Answer(EINVAL, None)),
        (None, "x", CAPS, FREE, Answer(0, Held("x", CAPS))),
        (None, "x", Feature.KSM, FREE, Answer(EINVAL, None)),
    ],
)
def test_caps_c(held, owner, features, facts, answer):
    assert register_caps(held, owner, features, CAPS, facts) == answer


# -- features


MASK = Feature.RECLAIM | Feature.USER_NUMA
M = Held("x", MASK)


@pytest.mark.parametrize(
    ("held", "features", "facts", "answer"),
    [
        (None, MASK, FREE, Answer(0, M)),
        (M, MASK, ONLINE, Answer(0, M)),
        (M, Feature.USER_NUMA, ONLINE, Answer(EBUSY, M)),
        (M, Feature.USER_NUMA, FREE, Answer(EBUSY, M)),  # offlined, not removed: still claimed
        (None, MASK, GENERAL, Answer(EBUSY, None)),
        (None, MASK, IMPOSSIBLE, Answer(EINVAL, None)),
        (None, Feature.DEMOTION | Feature.USER_NUMA, FREE, Answer(EINVAL, None)),
        (None, Feature.PUBLIC, FREE, Answer(EINVAL, None)),
    ],
)
def test_features(held, features, facts, answer):
    assert claim_features(held, "x", features, F1_BITS, facts) == answer


def test_a_feature_claim_goes_with_the_last_range():
    assert release_features(M, 1, FREE) == Answer(EBUSY, M)
    assert release_features(M, 0, ONLINE) == Answer(EBUSY, M)
    assert release_features(M, 0, FREE) == Answer(0, None)


def test_a_node_with_cpus_is_refused_by_the_first_caps_only():
    assert [cpu_error(label, True) for label in ("caps-a", "caps-b", "caps-c", "F1")] == [EINVAL, 0, 0, 0]
    assert cpu_error("caps-a", False) == 0
