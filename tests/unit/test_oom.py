"""The OOM killer on one emulated kernel: who can be chosen under which constraint, and who is."""

import pytest

from privmem.nodeagent.host import oom
from privmem.nodeagent.host.kernel import Kernel, NodeBoot
from privmem.nodeagent.host.oom import Constraint, OomControl
from privmem.nodeagent.host.page_alloc import AllocContext
from privmem.nodeagent.host.process import Signalled
from privmem.scheduler.abi import Feature, Mpol, Reason
from privmem.scheduler.zonelist import AllocRequest

D0, D1, P = range(3)
PAGE = 4096
DISTANCES = tuple(tuple(10 if a == b else 20 for a in range(3)) for b in range(3))
OPEN = Feature.USER_NUMA | Feature.USER_WRITE | Feature.MIGRATION
TIERED = Feature.RECLAIM | Feature.DEMOTION | Feature.USER_WRITE


def kernel(design="private-zonelist", wish=OPEN):
    nodes = [
        NodeBoot(D0, 512, (0,)),
        NodeBoot(D1, 512, (1,)),
        NodeBoot(P, 256, private=True, wish=wish, zone="movable"),
    ]
    return Kernel(nodes, DISTANCES, design)


def holding(host, nr_pages, bind=None):
    """A process with that many written pages, by a policy of the task."""
    process = host.spawn(0)
    if bind is not None:
        process.set_mempolicy(Mpol.BIND, bind)
    process.touch(process.mmap(nr_pages * PAGE), nr_pages * PAGE)
    return process


def chosen(host, processes, control):
    task = oom.select_victim(host.memory, [p.task for p in processes], control)
    return next((p for p in processes if p.task is task), None)


def test_the_task_with_most_pages_is_chosen_and_the_youngest_of_equals():
    host = kernel()
    tasks = [holding(host, pages) for pages in (8, 20, 20, 3)]
    assert chosen(host, tasks, OomControl()) is tasks[2]


def test_a_bind_elsewhere_spares():
    host = kernel()
    large, small, anywhere = holding(host, 100, [D1]), holding(host, 10, [P]), holding(host, 5)
    everybody = [large, small, anywhere]
    assert chosen(host, everybody, OomControl(Constraint.MEMORY_POLICY, 1 << P)) is small
    assert chosen(host, everybody, OomControl(Constraint.MEMORY_POLICY, 1 << D0)) is anywhere
    assert chosen(host, everybody, OomControl()) is large


def test_the_score_is_adjusted_by_thousandths_of_the_memory():
    host = kernel()
    large, small = holding(host, 100), holding(host, 10)
    small.task.oom_score_adj = 100  # of 1024 pages: the private node does not count
    assert oom.total_pages(host.memory, OomControl()) == 1024
    assert oom.badness(host.memory, small.task, 1024) == 112
    assert chosen(host, [large, small], OomControl()) is small
    small.task.oom_score_adj = oom.ADJ_MIN
    large.task.oom_score_adj = oom.ADJ_MIN
    assert chosen(host, [large, small], OomControl()) is None


@pytest.mark.parametrize(
    ("wish", "total"), [(TIERED, 1280), (Feature.RECLAIM | Feature.USER_WRITE, 1024), (OPEN, 1024)]
)
def test_v4_counts_a_node_with_reclaim_and_demotion(wish, total):
    assert oom.total_pages(kernel("gfp-private", wish).memory, OomControl()) == total


def test_a_full_private_node_kills_who_is_bound_to_it():
    host = kernel()
    other = holding(host, 300, [D0])
    first = holding(host, 150, [P])
    second = host.spawn(0)
    second.set_mempolicy(Mpol.BIND, [P])
    addr = second.mmap(128 * PAGE)
    second.touch(addr, 128 * PAGE)  # the larger of the two makes room
    assert (first.exited, second.exited, other.exited) == (True, False, False)
    assert second.where(addr, 128 * PAGE) == [P] * 128
    assert host.log[-2].startswith("oom-kill:constraint=CONSTRAINT_MEMORY_POLICY,nodemask=2,mems_allowed=0-2")
    with pytest.raises(Signalled):
        second.touch(second.mmap(200 * PAGE), 200 * PAGE)


@pytest.mark.parametrize(
    ("reason", "this_node", "kills"),
    [
        (Reason.FAULT, False, True),
        (Reason.FAULT, True, False),
        (Reason.OWNER, False, False),
        (Reason.DEMOTION, False, False),
        (Reason.HUGETLB, False, False),
    ],
)
def test_requests_that_go_without_kill_nobody(reason, this_node, kills):
    request = AllocRequest(D0, this_node=this_node, reason=reason)
    ctx = AllocContext((D0,), reason, request=request)
    assert oom.may_kill(ctx) is kills


@pytest.mark.parametrize(("wish", "chosen_at"), [(OPEN, 0), (OPEN | TIERED, 1)])
def test_v4_asks_users_of_a_private_node_only_where_it_counts(wish, chosen_at):
    host = kernel("gfp-private", wish)
    both, other = holding(host, 10, [D0, P]), holding(host, 50, [D1, P])
    control = OomControl(Constraint.MEMORY_POLICY, 1 << D0 | 1 << P)
    assert chosen(host, [both, other], control) is [both, other][chosen_at]
    only = OomControl(Constraint.MEMORY_POLICY, 1 << P)
    assert chosen(host, [both, other], only) is other
