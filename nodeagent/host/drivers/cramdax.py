"""The test device of the compressed RAM service: memory behind a node, a ratio that a test turns, and its
files.

Models `cramdax` of F3: attributes `state` (online, offline, unplugged), `memory_features`, `zratio` (the
nominal ratio, thousandths), `compression_ratio` (what the device reaches now), `balloon_target`, `no_alloc`,
`trim_count`. Under the earlier generations the same files stand for the debug knobs that their test devices
had. Attribute writes return 0 or a negative errno. Here nothing is compressed: nodeagent/device does that.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from privmem.nodeagent.host import hotplug
from privmem.nodeagent.host.cram import capacity, gate
from privmem.nodeagent.host.cram.registration import cram_register, cram_unregister, usual_features
from privmem.nodeagent.host.cram.service import RATIO_ONE, CramNode, Generation
from privmem.nodeagent.host.drivers.dax_test import format_features, parse_features
from privmem.scheduler.abi import Feature

if TYPE_CHECKING:
    from privmem.nodeagent.host.kernel import Kernel

#: Bits that F3 knows, the fence as what is missing.
_LATEST = Feature.RECLAIM | Feature.COMPACTION | Feature.USER_WRITE
#: Names of a mask that are not features of their own: the fence is what `user_write` lacks.
_FENCE = ("write_fence", "protect_write")


class CramDax:
    """One device, behind one node."""

    def __init__(self, kernel: Kernel, nid: int, zratio: int = RATIO_ONE) -> None:
        self.kernel = kernel
        self.nid = nid
        self.owner = f"cramdax{nid}"
        self.zratio = zratio
        self.features = usual_features(kernel.memory.cram.generation)

    # -- attributes

    def write(self, attribute: str, text: str) -> int:
        """Write an attribute: 0 or a negative errno; -ENOENT for one that it does not have."""
        writers = {
            "state": self._write_state,
            "memory_features": self._write_features,
            "zratio": self._write_zratio,
            "compression_ratio": self._write_ratio,
            "balloon_target": self._write_target,
            "no_alloc": self._write_no_alloc,
        }
        if attribute == "trim_count":
            return -errno.EACCES
        return writers[attribute](text.strip()) if attribute in writers else -errno.ENOENT

    def read(self, attribute: str) -> str | None:
        """Text of an attribute; None for one that it does not have."""
        cram = self._cram()
        if attribute == "state":
            return self.state
        if attribute == "memory_features":
            return format_features(self.features)
        if attribute == "zratio":
            return str(self.zratio)
        numbers = {
            "compression_ratio": cram.real_ratio if cram else self.zratio,
            "balloon_target": cram.target_pages if cram else 0,
            "no_alloc": int(not cram.gate.alloc_allowed) if cram else 0,
            "trim_count": cram.trimmed_pages if cram else 0,
        }
        return str(numbers[attribute]) if attribute in numbers else None

    @property
    def state(self) -> str:
        """As it is written."""
        return self.kernel.hotplug.state(self.nid)

    def _cram(self) -> CramNode | None:
        return self.kernel.memory.cram.nodes.get(self.nid)

    def _write_state(self, text: str) -> int:
        if text == hotplug.ONLINE:
            return self._online()
        if text == hotplug.OFFLINE:
            return self._change(self.kernel.hotplug.offline(self.nid))
        if text == hotplug.UNPLUGGED:
            gone = self.state == hotplug.UNPLUGGED
            return 0 if gone else self._change(cram_unregister(self.kernel.hotplug, self.nid))
        return -errno.EINVAL

    def _online(self) -> int:
        plug = self.kernel.hotplug
        if self.state == hotplug.UNPLUGGED:
            ranges = [(0, self.kernel.boot[self.nid].pages)]
            error = cram_register(plug, self.nid, ranges, self.features, self.owner, self.zratio)
        else:
            error = plug.online(self.nid)
        return self._change(error)

    def _change(self, error: int) -> int:
        self.kernel.memory_changed()
        return error

    def _write_features(self, text: str) -> int:
        """Whether the bits fit together is asked when the node is registered."""
        if self.state == hotplug.ONLINE:
            return -errno.EBUSY
        features = fenced_features(text)
        if features is None or features & Feature.PUBLIC:
            return -errno.EINVAL
        if self.kernel.memory.cram.generation is Generation.F3 and features & ~_LATEST:
            return -errno.EINVAL
        self.features = features
        return 0

    def _write_zratio(self, text: str) -> int:
        if self.state == hotplug.ONLINE:
            return -errno.EBUSY
        ratio = _number(text)
        if ratio < RATIO_ONE:
            return -errno.EINVAL
        self.zratio = ratio
        cram = self._cram()
        if cram is not None:
            cram.nominal_ratio = ratio
        return 0

    def _write_ratio(self, text: str) -> int:
        ratio = _number(text)
        if ratio < RATIO_ONE:
            return -errno.EINVAL
        cram = self._cram()
        if cram is None or self.state != hotplug.ONLINE:
            return -errno.ENODEV
        memory = self.kernel.memory
        if memory.cram.generation is Generation.F1:
            return capacity.set_compression_ratio(memory, self.nid, ratio)
        cram.real_ratio = ratio
        total = cram.total_pages
        fits = total * ratio // cram.nominal_ratio if ratio < cram.nominal_ratio else total
        return capacity.set_capacity(memory, self.nid, fits)

    def _write_target(self, text: str) -> int:
        pages = _number(text)
        if pages < 0:
            return -errno.EINVAL
        if self.state != hotplug.ONLINE:
            return -errno.ENODEV
        return capacity.set_target(self.kernel.memory, self.nid, pages)

    def _write_no_alloc(self, text: str) -> int:
        if text not in ("0", "1"):
            return -errno.EINVAL
        if self.state != hotplug.ONLINE:
            return -errno.ENODEV
        return gate.set_no_alloc(self.kernel.memory, self.nid, text == "1", self.owner)


def fenced_features(text: str) -> Feature | None:
    """A mask of names in which the write fence is a bit of its own, as F3 has it: without `write_fence` the
    node would be open to writes. None for a name that does not exist, or twice.
    """
    names = [name.strip() for name in text.split(",")]
    fences = [name for name in names if name in _FENCE]
    rest = [name for name in names if name not in _FENCE]
    if len(fences) > 1:
        return None
    if not fences and text.startswith("0x"):
        return parse_features(text)
    features = parse_features(",".join(rest))
    return None if features is None else features | (Feature.NONE if fences else Feature.USER_WRITE)


def _number(text: str) -> int:
    """A number in decimal; -1 for anything else."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 12 else -1
