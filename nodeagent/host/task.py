"""A task: the parts of `task_struct` that memory management reads."""

from __future__ import annotations

from typing import Any

from privmem.nodeagent.host.mm import Mm, Vma
from privmem.nodeagent.host.mmu_gather import MmuGather
from privmem.nodeagent.host.page_alloc import AllocContext
from privmem.nodeagent.host.resolve import Resolver
from privmem.scheduler import mempolicy
from privmem.scheduler.abi import Mpol, Reason
from privmem.scheduler.errors import InvariantError
from privmem.scheduler.mempolicy import IL_PREV_NONE, NUMA_NO_NODE, Mempolicy
from privmem.scheduler.zonelist import AllocRequest

_NUMBERS = (
    "mems_allowed",
    "cpu",
    "cpus_allowed",
    "root",
    "oom_score_adj",
    "min_flt",
    "maj_flt",
    "il_prev",
    "il_weight",
    "next_scan_ns",
    "scan_vpn",
)


class Task:
    """One process of one thread group; its id is also that of its address space."""

    def __init__(self, pid: int, cpu: int, resolver: Resolver) -> None:
        self.pid = pid
        self.resolver = resolver
        self.mm = Mm(pid)
        self.cpu = cpu
        #: /proc/<pid>/oom_score_adj, -1000 (never killed) to 1000.
        self.oom_score_adj = 0
        #: `sched_setaffinity`'s mask; -1 for every CPU.
        self.cpus_allowed = -1
        #: Whether it has CAP_SYS_NICE, CAP_SYS_PTRACE and the other rights that the calls ask for.
        self.root = True
        #: `set_mempolicy`'s policy; None is the default.
        self.policy: Mempolicy | None = None
        #: Effective mems of its cpuset.
        self.mems_allowed = resolver.cpuset_nodes.top
        self.il_prev = IL_PREV_NONE
        #: What is left of the weight of node `il_prev` (MPOL_WEIGHTED_INTERLEAVE).
        self.il_weight = 0
        #: `do_migrate_pages` that waits for an extent: old nodes, new nodes, old ones that are left, pages that
        #: could not move so far.
        self.migrating: tuple[int, int, int, int] | None = None
        #: Soft and hard faults so far (`ru_minflt`, `ru_majflt`).
        self.min_flt = 0
        self.maj_flt = 0
        #: NUMA balancing: when it scans next, and from which page on.
        self.next_scan_ns = 0
        self.scan_vpn = 0

    @property
    def cpu_nid(self) -> int:
        """`numa_node_id`."""
        return self.resolver.topology.node_of_cpu(self.cpu)

    @property
    def reach(self) -> int:
        """Nodes that this task's policies and moves may use: its cpuset's, and those that no cpuset governs."""
        return self.resolver.policy_nodes.reach(self.mems_allowed)

    def gather(self) -> MmuGather | None:
        """`tlb_gather_mmu`: kept only for a task that takes turns."""
        return MmuGather() if self.policy is not None and self.policy.mode in mempolicy.INTERLEAVES else None

    def finish(self, gather: MmuGather | None) -> None:
        """`tlb_finish_mmu`: for each page that the list took the task has given a turn."""
        for _ in range(gather.batches if gather is not None else 0):
            self.policy_request(self.policy, None)

    def alloc_context(self, vma: Vma, vpn: int) -> AllocContext:
        """`get_vma_policy` and `vma_alloc_folio`: what a fault at `vpn` asks the allocator for.

        Interleaving goes by the page's offset in its VMA's object, which for anonymous memory is its address.
        """
        return self.context_of(*self.policy_request(vma.policy or self.policy, vma.offset_of(vpn)))

    def policy_request(
        self, policy: Mempolicy | None, offset: int | None, movable: bool = True
    ) -> tuple[AllocRequest, bool]:
        """What is asked for under a policy, and whether it is a turn of interleaving.

        Interleaving goes by `offset`, a page's number in whatever it belongs to; for a page that belongs to
        no mapping (None) by the task's own counter.
        """
        turn = self._turn(policy, offset) if policy is not None else NUMA_NO_NODE
        normal_zone = self.resolver.topology.normal_zone
        request = mempolicy.request(policy, self.cpu_nid, self.reach, turn, movable, normal_zone)
        return request, turn != NUMA_NO_NODE

    def _turn(self, policy: Mempolicy, offset: int | None) -> int:
        """The node whose turn it is, if the policy takes turns (`interleave_nodes`, `offset_il_node`, weighted)."""
        weights = self.resolver.weights
        if policy.mode == Mpol.INTERLEAVE:
            if offset is None:
                turn, self.il_prev = mempolicy.interleave_next(policy, self.il_prev)
                return turn
            if not self.resolver.linux.folio_mempolicy:
                offset &= 0xFFFFFFFF
            return mempolicy.offset_il_node(policy, offset, self.cpu_nid)
        if policy.mode == Mpol.WEIGHTED_INTERLEAVE:
            if offset is None:
                state = mempolicy.weighted_interleave_next(policy, self.il_prev, self.il_weight, weights)
                turn, self.il_prev, self.il_weight = state
                return turn
            return mempolicy.weighted_interleave_nid(policy, offset, self.cpu_nid, weights)
        return NUMA_NO_NODE

    def context_of(self, request: AllocRequest, interleave: bool = False) -> AllocContext:
        """A request of this task with its candidate zones."""
        retry = None
        if request.retry_unmasked:
            retry = self.resolver.candidates(request.unmasked(), self.mems_allowed)
        resolution = self.resolver.resolve(request, self.mems_allowed)
        return AllocContext(
            zones=resolution.zones,
            uninvited=resolution.uninvited,
            request=request,
            retry_zones=retry,
            reason=request.reason,
            cpu_nid=self.cpu_nid,
            owner=self.pid,
            interleave=interleave,
        )

    def promotion_context(self) -> AllocContext:
        """Where a page of compressed RAM goes when it is written: public nodes, from the CPU's node
        outwards.
        """
        return self.context_of(AllocRequest(self.cpu_nid, None, Reason.PROMOTION))

    def snapshot(self) -> dict[str, Any]:
        return {
            "policy": None if self.policy is None else self.policy.to_spec(),
            **{name: getattr(self, name) for name in _NUMBERS},
            "migrating": None if self.migrating is None else list(self.migrating),
            "lock_future": self.mm.lock_future,
            "vmas": self.mm.to_spec(),
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        policy = snapshot["policy"]
        self.policy = None if policy is None else Mempolicy.from_spec(policy)
        for name in _NUMBERS:
            setattr(self, name, snapshot[name])
        migrating = snapshot["migrating"]
        self.migrating = None if migrating is None else tuple(migrating)
        self.mm.lock_future = snapshot["lock_future"]
        self.mm.restore(snapshot["vmas"])


def set_boot_policy(task: Task, spec: list[int]) -> None:
    """The policy that a program starts under: [mode with flags, node mask]. The configuration was checked
    before.
    """
    mode, nodes = spec
    error, task.policy = mempolicy.new_policy(mode, nodes, task.mems_allowed, task.resolver.policy_nodes)
    if error:
        raise InvariantError(
            f"task {task.pid}: policy {mode} over nodes {nodes:b} is refused with errno {-error}"
        )
