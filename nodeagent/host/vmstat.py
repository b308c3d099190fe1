"""Event counters of a host, named as in /proc/vmstat (Linux 6.1) where the kernel has them."""

from __future__ import annotations

#: Kernel names first; the others are ours and say so.
EVENTS = (
    "pgalloc",
    "pgfree",
    "pgfault",
    "pgmajfault",  # faults that read a file's page
    "pgreuse",  # write-protect faults that only made an entry writable
    "pgcow",  # ours: copies on write
    "pgscan_kswapd",
    "pgscan_direct",
    "pgsteal_kswapd",
    "pgsteal_direct",
    "pgactivate",
    "pgdeactivate",
    "pswpin",
    "pswpout",
    "swap_ra",  # pages that came from swap ahead of their fault
    "swap_ra_hit",
    "pglazyfree",
    "pglazyfreed",
    "workingset_refault_file",
    "workingset_activate_file",
    "pgdemote_kswapd",
    "pgdemote_direct",
    "pgpromote_success",  # by NUMA hint faults
    "pgpromote_candidate",
    "pgpromote_fence",  # by a write to a fenced page of compressed RAM (feature series F1)
    "pgpromote_fence_fail",  # ours: no memory for it; the fault is tried again
    "pgdemote_owner",  # ours: pages that the driver that owns a node took from ordinary nodes
    "pgpromote_owner",  # ours: by the sampling of the driver that owns the node
    "pgmigrate_success",
    "pgmigrate_fail",
    "numa_pte_updates",
    "numa_hint_faults",
    "numa_hint_faults_local",
    "numa_pages_migrated",  # by mode 1
    "allocstall",
    "kswapd_wake",  # ours: pageoutrun counts runs, not wakes
    "oom_kill",
    "ksm_merged",  # ours: pages that went for an equal one
    "pgleak",  # ours: pages that landed on a private node that did not invite them
    "demote_compressed",  # ours: pages demoted to a compressed node
    "demote_pooled",  # ours: pages demoted to a pooled node
    "thp_fault_alloc",
    "thp_fault_fallback",
    "thp_collapse_alloc",
    "thp_collapse_alloc_failed",
    "thp_split_page",
    "thp_split_pmd",
    "thp_migration_success",
    "thp_migration_split",
    "compact_isolated",
    "compact_stall",
    "compact_success",
    "compact_fail",
    "htlb_buddy_alloc_success",
    "htlb_buddy_alloc_fail",
    "cma_alloc_success",
    "cma_alloc_fail",
    "memory_failure",  # ours: hardware errors in allocated frames
    "nr_foll_pin_acquired",
    "nr_foll_pin_released",
    "longterm_pin_fail",  # ours: pages of DMA buffers that may not be pinned on the node of their device
    "driver_migrate_in",  # ours: pages that a GPU's driver moved onto its node before a launch
    "driver_migrate_back",  # ours: and off it afterwards
    "driver_migrate_fail",  # ours: those that there was no room for, and stayed out
    "netbuf_device",  # ours: message buffers on the node of their target device
    "netbuf_fallback",  # ours: those in ordinary memory, as the device has none or none left
    "netbuf_fail",  # ours: those that no memory could be had for
    "nr_balloon_pages",  # no event: what the balloons of compressed nodes hold now
    "balloon_inflate",
    "balloon_deflate",
    "balloon_migrate",
    "pgcontig_reclaim",  # occupants that a contiguous range of a withdrawn node sent to swap (F1's name)
    "cram_oom",  # ours: processes killed because a balloon could not converge (F1)
    "cram_written_in_place",  # ours: pages of a node without write control that went to its device again
    "cram_refused_accepted",  # ours: of those, pages that the device then had no room for: lost
    "sigbus",  # ours: accesses to pages that are lost
    "cram_hot_dropped",  # ours: reports of hot pages that found the ring full
    "literal_sent",  # ours: pages whose bytes went to a device
    "literal_returned",  # ours: pages whose bytes came back from one, checked
    "extents_requested",
    "extents_granted",
    "extents_refused",
    "extents_released",
    "extents_asked_back",
    "extents_taken",  # by force
    "extent_pages_lost",
    "extent_kill",  # ours: processes killed because an extent with a page of theirs was taken
)


#: Those that say how much there is now, and are never counted from a mark.
GAUGES = ("nr_balloon_pages",)


class Vmstat:
    """A fixed set of counters; unknown names raise."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count: dict[str, int] = dict.fromkeys(EVENTS, 0)

    def add(self, event: str, by: int = 1) -> None:
        """`count_vm_events`."""
        self.count[event] += by

    def restore(self, counts: dict[str, int]) -> None:
        self.count = dict.fromkeys(EVENTS, 0) | {k: counts[k] for k in EVENTS}
