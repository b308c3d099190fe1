"""Who holds a private node, and what each version of the series answers to a driver that wants it.

Models `node_private_register`, `_unregister`, `_set_ops` and `_clear_ops` of the first version (RFC v4, with the
flag dependencies of drivers/base/node.c), `node_private_register` of caps-c, and `node_features_register` and
`_unregister` of the feature versions (F0 to F3). Calls are pure: they take what is held and what is true of the
node, and give back an `Answer`. Left out: locks, and the driver's memory behind the pointers: an owner and a set
of ops are known by their names.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace

from privmem.scheduler.abi import Feature


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What the calls look at beside the claim."""

    #: In the possible mask.
    possible: bool = True
    #: Ordinary memory is online on the node (N_MEMORY where that excludes private nodes).
    general_memory: bool = False
    #: Memory of a claim is online on the node.
    private_memory: bool = False
    #: The subsystem is initialised (`node_dev_init` has run).
    ready: bool = True

    @property
    def has_memory(self) -> bool:
        """Any memory at all."""
        return self.general_memory or self.private_memory


@dataclass(frozen=True, slots=True)
class Ops:
    """`struct node_private_ops` of the first version: flags, and which callbacks are there."""

    name: str
    flags: Feature = Feature.NONE
    migrate_to: bool = False
    folio_migrate: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """A claim: its owner, the mask that was fixed with it, and in the first version the ops installed."""

    owner: str
    features: Feature = Feature.NONE
    ops: Ops | None = None
    #: Temporary references that somebody takes around a callback; unregistering waits for them.
    references: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """0 or a negative errno, and what is held afterwards."""

    error: int
    held: Held | None
    #: The call sleeps until the temporary references are dropped, and does then what it says.
    waits: bool = False


# -- the first version (v4)


def register(held: Held | None, owner: str | None, facts: NodeFacts) -> Answer:
    """`node_private_register`: changes no node state; the same owner may register again."""
    if owner is None or not facts.possible:
        return Answer(-errno.EINVAL, held)
    if not facts.ready:
        return Answer(-errno.ENODEV, held)
    if facts.general_memory or (held is not None and held.owner != owner):
        return Answer(-errno.EBUSY, held)
    return Answer(0, held or Held(owner))


def unregister(held: Held | None, facts: NodeFacts) -> Answer:
    """`node_private_unregister`: 0 when nothing is registered, EBUSY while private memory is online."""
    if held is None:
        return Answer(0, None)
    if facts.private_memory:
        return Answer(-errno.EBUSY, held)
    return Answer(0, None, waits=held.references > 0)


def ops_error(ops: Ops) -> int:
    """The dependencies of the flags: 0 or -EINVAL.

    MIGRATION needs both callbacks; MEMPOLICY, NUMA_BALANCING and COMPACTION need MIGRATION; a node cannot be
    named in policies and be write-protected (USER_WRITE missing) at once.
    """
    flags = ops.flags
    if flags & Feature.MIGRATION and not (ops.migrate_to and ops.folio_migrate):
        return -errno.EINVAL
    needs = Feature.USER_NUMA | Feature.NUMA_BALANCING | Feature.COMPACTION
    if flags & needs and not flags & Feature.MIGRATION:
        return -errno.EINVAL
    if flags & Feature.USER_NUMA and not flags & Feature.USER_WRITE:
        return -errno.EINVAL
    return 0


def set_ops(held: Held | None, ops: Ops | None, facts: NodeFacts) -> Answer:
    """`node_private_set_ops`: EINVAL for no ops, an impossible node or unmet dependencies; ENODEV when nobody
    has registered.
    """
    if ops is None or not facts.possible or ops_error(ops):
        return Answer(-errno.EINVAL, held)
    if held is None:
        return Answer(-errno.ENODEV, None)
    return Answer(0, replace(held, ops=ops, features=ops.flags))


def clear_ops(held: Held | None, ops: Ops) -> Answer:
    """`node_private_clear_ops`: ENODEV when nobody has registered, EINVAL when other ops are installed."""
    if held is None:
        return Answer(-errno.ENODEV, None)
    if held.ops is None or held.ops.name != ops.name:
        return Answer(-errno.EINVAL, held)
    return Answer(0, replace(held, ops=None, features=Feature.NONE))


def add_memory_error(owner: str | None, group_known: bool) -> int:
    """`add_private_memory_driver_managed`: what it refuses before it registers anybody."""
    return -errno.EINVAL if owner is None or not group_known else 0


# -- caps


def cpu_error(label: str, has_cpus: bool) -> int:
    """caps-a: a node that owns CPUs cannot be private."""
    return -errno.EINVAL if label == "caps-a" and has_cpus else 0


def register_caps(
    held: Held | None, owner: str | None, features: Feature, bits: Feature, facts: NodeFacts
) -> Answer:
    """`node_private_register` of caps-c; no owner asserts that the node is an ordinary one.

    `bits` are all that a mask can have: the marker of an ordinary node (FALLBACK, `Feature.PUBLIC`) needs them
    all.
    """
    if not facts.possible:
        return Answer(-errno.EINVAL, held)
    if owner is None:
        return Answer(-errno.EBUSY if held else 0, held)
    if held is not None:
        same = held.owner == owner and held.features == features
        return Answer(0 if same else -errno.EBUSY, held)
    if facts.has_memory:
        return Answer(-errno.EBUSY, None)
    if features & ~bits or (features & Feature.DEMOTION and not features & Feature.RECLAIM):
        return Answer(-errno.EINVAL, None)
    if features & Feature.PUBLIC and features != bits:
        return Answer(-errno.EINVAL, None)
    return Answer(0, Held(owner, features))


# -- features (F0 to F3)


def claim_features(
    held: Held | None, owner: str, features: Feature, bits: Feature, facts: NodeFacts
) -> Answer:
    """`node_features_register`: the first claim fixes the mask; an equal one joins, another is refused and
    changes nothing. `bits` are those of a private node's mask in this version.
    """
    if not facts.possible or features & ~bits:
        return Answer(-errno.EINVAL, held)
    if features & Feature.DEMOTION and not features & Feature.RECLAIM:
        return Answer(-errno.EINVAL, held)
    if held is not None:
        return Answer(0 if held.features == features else -errno.EBUSY, held)
    if facts.general_memory:
        return Answer(-errno.EBUSY, None)
    return Answer(0, Held(owner, features))


def release_features(held: Held | None, ranges_left: int, facts: NodeFacts) -> Answer:
    """`node_features_unregister`: the claim goes with the last range that is removed; taking memory offline does
    not end it. EBUSY while other ranges are there (the one removed is gone, the claim is kept).
    """
    if ranges_left or facts.private_memory:
        return Answer(-errno.EBUSY, held)
    return Answer(0, None)
