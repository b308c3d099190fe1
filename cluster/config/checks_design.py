"""What the isolation design of a run refuses: masks of private nodes, and policies that name them.

Asked of the design itself (`claim_error`, `policy_nodes`), for what the kernel would answer when the run starts
is what the configuration's author should read now.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

from privmem.cluster.config.checks_host import Mistake
from privmem.cluster.config.fields import wrong
from privmem.cluster.config.models import Config, HostConfig, NodeConfig, PolicyConfig
from privmem.cluster.config.shape import Path
from privmem.scheduler import mempolicy, nodemask
from privmem.scheduler.abi import MPOL_F_RELATIVE_NODES, MPOL_F_STATIC_NODES, Feature, Mpol
from privmem.scheduler.isolation import Design, get_design
from privmem.scheduler.topology import LOCAL_DISTANCE, HostTopology, NodeTopology

_FLAGS = {"static_nodes": MPOL_F_STATIC_NODES, "relative_nodes": MPOL_F_RELATIVE_NODES}


def check_design(config: Config, host: HostConfig, place: Path) -> list[Mistake]:
    """Every mistake of a host whose nodes have been found consistent."""
    design = get_design(config.design)
    mistakes = [
        mistake
        for n, node in enumerate(host.nodes)
        if node.private
        for mistake in _claim(design, node, (*place, "nodes", n, "features"))
    ]
    return mistakes or list(_policies(design, host, place))


def wished_features(node: NodeConfig) -> Feature:
    """What a private node opts in to, before the design takes its bits of it."""
    mask = Feature.NONE
    for name in node.features:
        mask |= Feature[name.upper()]
    return mask


def granted_features(design: Design, node: NodeConfig) -> Feature:
    """A private node has what the design grants, a public one everything."""
    return design.grant(wished_features(node)) if node.private else Feature.ALL


def _claim(design: Design, node: NodeConfig, here: Path) -> Iterator[Mistake]:
    granted = granted_features(design, node)
    error = design.claim_error(granted)
    if not error:
        return
    uses: tuple[Path, ...] = (here, ("design",))
    if Feature.DEMOTION in granted and Feature.RECLAIM not in granted:
        text = wrong("demotion without reclaim", "with reclaim, which the kernel demands")
    elif Feature.USER_NUMA in granted and Feature.USER_WRITE not in granted:
        text = wrong("user_numa without user_write", f"with user_write, which {design.name} demands")
    else:
        name = errno.errorcode[-error]
        text = wrong(f"a mask that {design.name} refuses with {name}", "another set of features")
    yield Mistake(here, text, uses)


def _policies(design: Design, host: HostConfig, place: Path) -> Iterator[Mistake]:
    topology = _topology(design, host)
    rules = design.policy_nodes(topology)
    mems = design.cpuset_nodes(topology).top
    for n, process in enumerate(host.processes):
        policy = process.policy
        error, _ = mempolicy.new_policy(_mode(policy), nodemask.of(policy.nodes), mems, rules)
        if error and policy.nodes:
            here: Path = (*place, "processes", n, "policy")
            told = ", ".join(str(nid) for nid in policy.nodes)
            text = wrong(
                f"{told} with mode {policy.mode!r}, which {design.name} refuses with {errno.errorcode[-error]}",
                "general nodes, or private ones as the design demands",
            )
            uses = ((*here, "nodes"), (*here, "mode"), (*place, "nodes"), ("design",))
            yield Mistake((*here, "nodes"), text, uses)


def _mode(policy: PolicyConfig) -> int:
    return int(Mpol[policy.mode.upper()]) | sum(_FLAGS[flag] for flag in policy.flags)


def _topology(design: Design, host: HostConfig) -> HostTopology:
    """Nodes with their features; sizes and distances do not matter to policies."""
    nodes = tuple(
        NodeTopology(node.id, private=node.private, features=granted_features(design, node), span_pages=1)
        for node in sorted(host.nodes, key=lambda node: node.id)
    )
    far = 2 * LOCAL_DISTANCE
    return HostTopology(nodes, tuple(tuple(LOCAL_DISTANCE if a is b else far for b in nodes) for a in nodes))
