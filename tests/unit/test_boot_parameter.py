"""The boot parameter private_node=, by mask and by name."""

import pytest

from privmem.scheduler.abi import Feature
from privmem.scheduler.isolation.boot import BootFacts, BootNode, boot_log, parse_private_node

F1_BITS = Feature.RECLAIM | Feature.DEMOTION | Feature.USER_NUMA | Feature.USER_WRITE
F2_BITS = F1_BITS | Feature.COMPACTION | Feature.CONTIG_ALLOC
MACHINE = BootFacts(possible=0b11111, with_cpus=0b00001, kernel_image=0b00011, dma_cma=0b00100)


def by_mask(*texts, facts=MACHINE):
    return parse_private_node(texts, facts, F1_BITS, by_name=False)


def by_name(*texts, facts=MACHINE):
    return parse_private_node(texts, facts, F2_BITS, by_name=True)


@pytest.mark.parametrize(
    ("text", "features"),
    [("3", Feature.NONE), ("3,0x186", F1_BITS), ("4,82", Feature.RECLAIM | Feature.USER_NUMA)],
)
def test_masks(text, features):
    assert by_mask(text) == (BootNode(text, int(text[0]), features),)


@pytest.mark.parametrize(
    ("text", "features"),
    [
        ("3", Feature.USER_WRITE),
        ("3,user", Feature.USER_WRITE | Feature.USER_NUMA),
        ("3,contig,compact,reclaim,demotion,user", F2_BITS),
    ],
)
def test_names(text, features):
    assert by_name(text) == (BootNode(text, 3, features),)


@pytest.mark.parametrize(
    ("parse", "text", "why"),
    [
        (by_name, "3,bogus", "unknown name 'bogus'"),
        (by_name, "3,user,user", "'user' twice"),
        (by_name, "3,demotion", "demotion needs reclaim"),
        (by_name, "3,0x186", "unknown name '0x186'"),
        (by_mask, "3,user", "'user' is not a hexadecimal mask"),
        (by_mask, "3,0x1000", "unknown bits in 0x1000"),
        (by_mask, "3,0x1", "unknown bits in 0x1"),
        (by_mask, "3,-2", "unknown bits in -2"),
        (by_mask, "3,4", "demotion needs reclaim"),
        (by_mask, "3,2,2", "one mask is taken"),
        (by_mask, "x", "'x' is not a node id"),
        (by_mask, "64", "'64' is not a node id"),
        (by_mask, "", "'' is not a node id"),
        (by_mask, "5", "node 5 is not possible"),
        (by_mask, "0", "node 0 has CPUs"),
        (by_mask, "1", "node 1 holds the kernel image"),
        (by_mask, "2", "node 2 has a contiguous area for DMA (CMA)"),
    ],
)
def test_refusals(parse, text, why):
    assert [node.refused for node in parse(text)] == [why]


def test_a_node_is_named_once():
    assert [n.refused for n in by_mask("3", "4", "3,2")] == ["", "", "node 3 named twice"]


def test_kexec_handover_refuses_all():
    facts = BootFacts(possible=0b11111, with_cpus=1, kexec_handover=True)
    assert [n.refused for n in by_mask("3,2", facts=facts)] == ["kexec handover is enabled"]


def test_the_log_says_what_became_of_each():
    assert boot_log(by_mask("3,0x82", "2")) == [
        "private_node=3,0x82: node 3 is private, features 0x82",
        "private_node=2: refused: node 2 has a contiguous area for DMA (CMA)",
    ]
