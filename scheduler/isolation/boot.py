"""The boot parameter `private_node=`, which makes memory that firmware reported private before any driver runs.

Models the parameter of caps-c and F1, `<nid>[,<mask>]` with a hexadecimal mask, and of F2,
`<nid>[,reclaim][,compact][,contig][,demotion][,user]`; several parameters name several nodes. The mask follows
the rules of a driver's claim. A refused node stays an ordinary one, and the log says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from privmem.scheduler import nodemask
from privmem.scheduler.abi import MAX_NUMNODES, Feature

#: Names of F2, and what they stand for. The parameter has no name for writing: users may write in place.
NAMES: dict[str, Feature] = {
    "reclaim": Feature.RECLAIM,
    "compact": Feature.COMPACTION,
    "contig": Feature.CONTIG_ALLOC,
    "demotion": Feature.DEMOTION,
    "user": Feature.USER_NUMA,
}


@dataclass(frozen=True, slots=True)
class BootFacts:
    """What a machine has at boot; masks of nodes."""

    possible: int
    with_cpus: int
    #: Nodes that hold the kernel image.
    kernel_image: int = 0
    #: Nodes with a contiguous area for DMA (`cma=`, `numa_cma=`); one of `hugetlb_cma=` does not count.
    dma_cma: int = 0
    #: Kexec handover is enabled: it keeps memory across kernels wherever that is.
    kexec_handover: bool = False


@dataclass(frozen=True, slots=True)
class BootNode:
    """What became of one parameter: a private node with a mask, or why not."""

    text: str
    nid: int = -1
    features: Feature = Feature.NONE
    refused: str = ""


def parse_private_node(
    values: Sequence[str], facts: BootFacts, bits: Feature, by_name: bool
) -> tuple[BootNode, ...]:
    """All `private_node=` parameters of a command line, in their order.

    `bits` are those that the version knows; `by_name` says whether it takes names (F2) or a mask.
    """
    found: list[BootNode] = []
    seen = 0
    for text in values:
        node = _parse_one(text, bits, by_name)
        if not node.refused:
            why = _refusal(node, facts, seen)
            node = BootNode(text, node.nid, refused=why) if why else node
        if node.nid >= 0:
            seen |= 1 << node.nid
        found.append(node)
    return tuple(found)


def boot_log(nodes: Sequence[BootNode]) -> list[str]:
    """Lines of the kernel's log, one a parameter."""
    return [
        f"private_node={node.text}: refused: {node.refused}"
        if node.refused
        else f"private_node={node.text}: node {node.nid} is private, features {int(node.features):#x}"
        for node in nodes
    ]


def _parse_one(text: str, bits: Feature, by_name: bool) -> BootNode:
    nid_text, *rest = text.split(",")
    if not (nid_text.isascii() and nid_text.isdecimal() and int(nid_text) < MAX_NUMNODES):
        return BootNode(text, refused=f"{nid_text!r} is not a node id")
    nid = int(nid_text)
    features = Feature.USER_WRITE & bits if by_name else Feature.NONE
    if not by_name:
        if len(rest) > 1:
            return BootNode(text, nid, refused="one mask is taken")
        try:
            features = Feature(int(rest[0], 16)) if rest else Feature.NONE
        except ValueError:
            return BootNode(text, nid, refused=f"{rest[0]!r} is not a hexadecimal mask")
        if int(features) < 0 or features & ~bits:
            return BootNode(text, nid, refused=f"unknown bits in {rest[0]}")
    for name in rest if by_name else ():
        if name not in NAMES or not NAMES[name] & bits:
            return BootNode(text, nid, refused=f"unknown name {name!r}")
        if features & NAMES[name]:
            return BootNode(text, nid, refused=f"{name!r} twice")
        features |= NAMES[name]
    if features & Feature.DEMOTION and not features & Feature.RECLAIM:
        return BootNode(text, nid, refused="demotion needs reclaim")
    return BootNode(text, nid, features)


def _refusal(node: BootNode, facts: BootFacts, seen: int) -> str:
    """Why this node cannot be private; empty when it can."""
    for mask, why in (
        (seen, "named twice"),
        (~facts.possible, "is not possible"),
        (facts.with_cpus, "has CPUs"),
        (facts.kernel_image, "holds the kernel image"),
        (facts.dma_cma, "has a contiguous area for DMA (CMA)"),
    ):
        if nodemask.has(mask, node.nid):
            return f"node {node.nid} {why}"
    return "kexec handover is enabled" if facts.kexec_handover else ""
