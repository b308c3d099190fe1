"""The kernel's command line: memory that is private from boot on, and contiguous areas reserved at boot.

Models `private_node=` of the private-node series (scheduler/isolation/boot.py has its grammar, and what is
refused), and of Linux 6.6 `cma=`, `numa_cma=` and `hugetlb_cma=`. Areas are reserved first: a node that holds one
for DMA stays ordinary. A design whose version does not have the parameter ignores it, as Linux does with one that
it does not know. Left out: addresses, so that `cma=` reserves on the first node with CPUs, which also holds the
kernel image.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from privmem.nodeagent.host import contig
from privmem.scheduler import nodemask
from privmem.scheduler.abi import PAGE_SHIFT, Feature
from privmem.scheduler.isolation import boot
from privmem.scheduler.isolation.boot import BootFacts

if TYPE_CHECKING:
    from privmem.nodeagent.host.kernel import Kernel

#: Versions of the series that have `private_node=`, and whether they take names rather than a mask.
_SYNTAX = {"caps-c": False, "F0": False, "F1": False, "F2": True}

_SIZE = re.compile(r"(\d+)([KMG]?)", re.IGNORECASE)
_SHIFTS = {"": 0, "K": 10, "M": 20, "G": 30}


def apply_command_line(kernel: Kernel, text: str) -> None:
    """Do what the parameters say, in the order in which the kernel comes to them."""
    words = [word.partition("=") for word in text.split()]
    for name, _, value in words:
        if name in ("cma", "numa_cma", "hugetlb_cma"):
            _reserve(kernel, name, value)
    _private_nodes(kernel, [value for name, _, value in words if name == "private_node"], words)


def _private_nodes(kernel: Kernel, values: list[str], words: list[tuple[str, str, str]]) -> None:
    if not values:
        return
    design = kernel.design
    if design.label not in _SYNTAX:
        unknown = " ".join(f"private_node={value}" for value in values)
        kernel.log.append(
            f"Unknown kernel command line parameters {unknown!r}, will be passed to user space."
        )
        return
    memory = kernel.memory
    with_cpus = memory.topology.with_cpus
    facts = BootFacts(
        possible=memory.topology.memory,
        with_cpus=with_cpus,
        kernel_image=1 << nodemask.first(with_cpus),
        dma_cma=nodemask.of(nid for nid in memory.nodes if contig.has_dma_cma(memory, nid)),
        kexec_handover=any(name == "kho" and value in ("on", "1", "y") for name, _, value in words),
    )
    bits = design.grant(~Feature.PUBLIC)
    nodes = boot.parse_private_node(values, facts, bits, _SYNTAX[design.label])
    for node in nodes:
        if not node.refused:
            kernel.hotplug.claim_at_boot(node.nid, node.features)
    kernel.log += boot.boot_log(nodes)


def _reserve(kernel: Kernel, name: str, value: str) -> None:
    """`cma=SIZE`, `numa_cma=NODE:SIZE,...`, `hugetlb_cma=NODE:SIZE,...`; what cannot be had is told and left."""
    first = nodemask.first(kernel.memory.topology.with_cpus)
    for part in value.split(","):
        nid_text, colon, size_text = part.rpartition(":")
        match = _SIZE.fullmatch(size_text)
        if match is None or (colon and not nid_text.isdecimal()):
            kernel.log.append(f"{name}={value}: malformed")
            return
        pages = int(match[1]) << _SHIFTS[match[2].upper()] >> PAGE_SHIFT
        nid = int(nid_text) if colon else first
        error = contig.reserve_cma(kernel.memory, name, nid, pages, dma=name != "hugetlb_cma") if pages else 0
        if error:
            kernel.log.append(f"{name}: cannot reserve {pages} pages on node {nid}")
