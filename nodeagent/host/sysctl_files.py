"""Knobs of reclaim below /proc/sys/vm, and /proc/cmdline.

Models `swappiness`, `watermark_scale_factor`, `min_free_kbytes` and `page-cluster` of kernel/sysctl.c, Linux
6.1: a decimal number within bounds, else -EINVAL; new marks of the zones hold at once
(`setup_per_zone_wmarks`). Left out: hexadecimal and octal numbers, which `proc_dointvec` takes too; that hotplug
gives up a written `min_free_kbytes` for a larger computed one.
"""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import TYPE_CHECKING

from privmem.scheduler import nodemask
from privmem.scheduler.watermark import min_free_kbytes

if TYPE_CHECKING:
    from privmem.nodeagent.host.kernel import Kernel

_VM = "/proc/sys/vm/"
_INT_MAX = (1 << 31) - 1


def add_files(kernel: Kernel) -> None:
    """Enter them into the kernel's files."""
    own = SysctlFiles(kernel)
    add = kernel.sysfs.add
    add("/proc/cmdline", own.cmdline)
    add(_VM + "swappiness", own.swappiness, own.set_swappiness)
    add(_VM + "watermark_scale_factor", own.scale_factor, own.set_scale_factor)
    add(_VM + "min_free_kbytes", own.min_free, own.set_min_free)
    add(_VM + "page-cluster", own.page_cluster, own.set_page_cluster)


def _number(text: str, least: int, most: int = _INT_MAX) -> int:
    """`proc_dointvec_minmax`: a number within bounds, or -EINVAL."""
    if not (text.isascii() and text.isdecimal()):
        return -errno.EINVAL
    return int(text) if least <= int(text) <= most else -errno.EINVAL


class SysctlFiles:
    """Readers give text, writers 0 or a negative errno."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def cmdline(self) -> str:
        return self.kernel.cmdline

    def swappiness(self) -> str:
        return str(self.kernel.memory.knobs.swappiness)

    def set_swappiness(self, text: str) -> int:
        value = _number(text, 0, 200)
        if value >= 0:
            self.kernel.memory.knobs = replace(self.kernel.memory.knobs, swappiness=value)
        return min(value, 0)

    def scale_factor(self) -> str:
        return str(self.kernel.memory.knobs.watermark_scale_factor)

    def set_scale_factor(self, text: str) -> int:
        memory, value = self.kernel.memory, _number(text, 1, 3000)
        if value > 0:
            memory.knobs = replace(memory.knobs, watermark_scale_factor=value)
            memory.setup_watermarks()
        return min(value, 0)

    def min_free(self) -> str:
        """What was set, or what the kernel has computed."""
        memory = self.kernel.memory
        if memory.knobs.min_free_kbytes is not None:
            return str(memory.knobs.min_free_kbytes)
        ordinary = memory.topology.normal_zone
        return str(min_free_kbytes(sum(memory.nodes[nid].usable_pages for nid in nodemask.nodes(ordinary))))

    def set_min_free(self, text: str) -> int:
        memory, value = self.kernel.memory, _number(text, 0)
        if value >= 0:
            memory.knobs = replace(memory.knobs, min_free_kbytes=value)
            memory.setup_watermarks()
        return min(value, 0)

    def page_cluster(self) -> str:
        return str(self.kernel.memory.swap.page_cluster)

    def set_page_cluster(self, text: str) -> int:
        value = _number(text, 0)
        if value >= 0:
            self.kernel.memory.swap.page_cluster = value
        return min(value, 0)
