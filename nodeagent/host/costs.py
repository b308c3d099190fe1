"""What the kernel's own work costs, in nanoseconds of the CPU that does it.

These are choices of the right order of magnitude, the same for every host (docs/deviations.md); memory
latency comes on top
from the devices.
"""

from __future__ import annotations

#: A minor fault: entry, VMA look-up, allocation, mapping.
FAULT_NS = 700
#: Clearing the 512 pages of a huge page, beyond FAULT_NS: 2 MiB at 10 GB/s.
HUGE_CLEAR_NS = 200_000
#: A write-protect fault that only makes an entry writable.
WP_FAULT_NS = 500
#: A NUMA hint fault that leaves the page where it is.
HINT_FAULT_NS = 600
#: Unmap, flush and remap of one page, without the copy.
MIGRATE_NS = 1500
#: Looking at one page during reclaim.
SCAN_NS = 60
#: Bytes that one access moves: a cache line.
ACCESS_BYTES = 64
#: Cache lines that one core keeps in flight while it copies: 10 line fill buffers (Intel optimization manual,
#: Skylake).
COPY_LINES_IN_FLIGHT = 10
#: A page for a message: taken, and given back when it is sent.
NETBUF_NS = 300
#: SIGBUS to a process that handles it: the machine check, the signal, munmap and mmap of the page.
SIGBUS_NS = 20_000
#: Pause before a store to a fenced page is tried again when no memory could be had for its promotion.
FENCE_RETRY_NS = 100_000
#: A 4 KiB page from and to a swap area on an NVMe SSD (Intel SSD DC P4610, product brief: read 77 us, write
#: 18 us typical), and one in memory: a copy at 4 GB/s.
SWAP_READ_NS = 77_000
SWAP_WRITE_NS = 18_000
SWAP_RAM_NS = 1_000
#: The same SSD for pages of files that reclaim must write before it drops them, and for faults that read one.
FILE_READ_NS = 77_000
FILE_WRITE_NS = 18_000
