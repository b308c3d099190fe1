"""The test provider of the series: a device whose memory becomes a node, private or ordinary.

Models the attributes of the `dax_test` and kmem test drivers of the later versions (caps, features): `state`,
`memory_features`, `adistance`, `bind_node`, `contig` (contig_control.py); and their anonymous mapping, a private
mapping of the device file whose pages come from the bound node alone, which is the device's own at first. Attribute
writes return 0 or a negative errno.
"""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import TYPE_CHECKING

from privmem.nodeagent.host import hotplug, syscalls
from privmem.nodeagent.host.drivers.contig_control import ContigControl
from privmem.nodeagent.host.task import Task
from privmem.scheduler import nodemask
from privmem.scheduler.abi import Feature
from privmem.scheduler.isolation import Service
from privmem.scheduler.isolation.design import Claim
from privmem.scheduler.tiers import ADISTANCE_DAX
from privmem.scheduler.topology import ZONE_MOVABLE, ZONE_NORMAL

if TYPE_CHECKING:
    from privmem.nodeagent.host.kernel import Kernel

#: What `memory_features` calls an ordinary node.
ALL = "all"

#: The marker of an ordinary node goes by another name in caps-c, and from F2 on.
_GENERAL = {"fallback": "public", "common": "public"}
_NAMES = {f.name.lower(): f for f in Feature if f.name and f not in (Feature.ALL, Feature.NONE)}
_ZONE_OF = {"online": ZONE_MOVABLE, "online_movable": ZONE_MOVABLE, "online_kernel": ZONE_NORMAL}


class DaxTest:
    """One test device, behind one node; two devices may stand behind the same node, with ranges of their own."""

    def __init__(self, kernel: Kernel, nid: int, start: int = 0, nr_pages: int | None = None) -> None:
        self.kernel = kernel
        self.nid = nid
        self.start = start
        self.nr_pages = kernel.boot[nid].pages if nr_pages is None else nr_pages
        self.owner = f"dax{nid}.{start}"
        #: None: ordinary memory ("all").
        self.features: Feature | None = None
        self.adistance = ADISTANCE_DAX
        self.contig = ContigControl(self)
        #: Node that its anonymous mapping takes pages from; -1 for none.
        self.bound = nid

    # -- attributes

    def write(self, attribute: str, text: str) -> int:
        """Write an attribute of the device: 0 or a negative errno; -ENOENT for one that it does not have."""
        writers = {
            "state": self._write_state,
            "memory_features": self._write_features,
            "contig": self.contig.write,
            "bind_node": self._write_bound,
        }
        if self.features is not None:
            writers["adistance"] = self._write_adistance
        if attribute not in writers:
            return -errno.ENOENT
        return writers[attribute](text.strip())

    def read(self, attribute: str) -> str | None:
        """Text of an attribute; None for one that it does not have now."""
        if attribute == "state":
            return self._state()
        if attribute == "memory_features":
            return ALL if self.features is None else format_features(self.features)
        if attribute == "bind_node":
            return str(self.bound) if self.bound >= 0 else "none"
        if attribute == "contig":
            return str(self.contig.nid) if self.contig.nid >= 0 else "none"
        if attribute == "adistance" and self.features is not None:
            return str(self.adistance)
        return None

    def _state(self) -> str:
        for part in self.kernel.hotplug.ranges[self.nid]:
            if part.start == self.start:
                return hotplug.ONLINE if part.online else hotplug.OFFLINE
        return hotplug.UNPLUGGED

    def _write_features(self, text: str) -> int:
        """Only while unplugged. That the bits fit together is asked when the memory goes online."""
        if self._state() != hotplug.UNPLUGGED:
            return -errno.EBUSY
        features = None if text == ALL else parse_features(text)
        if text != ALL and features is None:
            return -errno.EINVAL
        if features is not None and features & Feature.PUBLIC:
            return -errno.EINVAL  # an ordinary node has all bits, no part of them
        self.features = features
        self.adistance = ADISTANCE_DAX
        return 0

    def _write_adistance(self, text: str) -> int:
        if self._state() != hotplug.UNPLUGGED:
            return -errno.EBUSY
        if not text.isascii() or not text.isdecimal() or int(text) <= 0:
            return -errno.EINVAL
        self.adistance = int(text)
        return 0

    def _write_bound(self, text: str) -> int:
        """A node with memory, or none."""
        nid = -1 if text in ("none", "-1") else int(text) if text.isascii() and text.isdecimal() else -2
        if nid == -2 or (nid >= 0 and not nodemask.has(self.kernel.memory.topology.memory, nid)):
            return -errno.EINVAL
        self.bound = nid
        return 0

    def _write_state(self, text: str) -> int:
        if text in _ZONE_OF:
            return self._online(_ZONE_OF[text])
        if text == hotplug.OFFLINE:
            return self._change(self.kernel.hotplug.offline(self.nid))
        if text == hotplug.UNPLUGGED:
            if self._state() == hotplug.UNPLUGGED:
                return 0
            error = self.kernel.hotplug.remove(self.nid, self.start)
            gone = self._state() == hotplug.UNPLUGGED
            return self._change(0 if gone else error)
        return -errno.EINVAL

    def _online(self, zone: str) -> int:
        plug = self.kernel.hotplug
        if self._state() == hotplug.UNPLUGGED:
            if self.features is None:
                error = plug.add_memory(self.nid, self.start, self.nr_pages)
            else:
                claim = Claim(self.owner, self.features)
                error = plug.add_private_memory(self.nid, claim, self.start, self.nr_pages)
                if not error:
                    plug.adistance.setdefault(self.nid, self.adistance)
            if error:
                return error
        return self._change(plug.online(self.nid, zone))

    def _change(self, error: int) -> int:
        self.kernel.memory_changed()
        return error

    # -- the anonymous mapping

    def mmap(self, task: Task, start: int, nr_pages: int, shared: bool = False) -> int:
        """Map the device file: private anonymous memory whose pages come from the device's node alone.

        -ENXIO while the node that it is bound to has no memory, or it is bound to none; -EINVAL for MAP_SHARED.
        Without RECLAIM the mapping never uses huge pages.
        """
        if shared:
            return -errno.EINVAL
        memory = self.kernel.memory
        if self.bound < 0 or not nodemask.has(memory.topology.memory, self.bound):
            return -errno.ENXIO
        error = syscalls.mmap_anon(memory, task, start, nr_pages)
        if error:
            return error
        huge = memory.resolver.allows(Service.RECLAIM, self.bound)
        parts = [
            replace(part, device_nid=self.bound, no_huge=not huge)
            for part in task.mm.in_range(start, start + nr_pages)
        ]
        task.mm.replace_range(start, start + nr_pages, parts)
        return 0


def parse_features(text: str) -> Feature | None:
    """`reclaim,demotion`; `none` or nothing is the empty mask; None for a name that does not exist or a repeated
    one. A number is taken as the mask itself.
    """
    if text in ("", "none"):
        return Feature.NONE
    if text.startswith("0x"):
        digits = text[2:]
        known = int(Feature.ALL)
        mask = int(digits, 16) if digits and all(c in "0123456789abcdefABCDEF" for c in digits) else -1
        return Feature(mask) if mask >= 0 and not mask & ~known else None
    mask = Feature.NONE
    for name in text.split(","):
        feature = _NAMES.get(_GENERAL.get(name.strip(), name.strip()))
        if feature is None or mask & feature:
            return None
        mask |= feature
    return mask


def format_features(mask: Feature) -> str:
    """The text that `parse_features` reads back."""
    return ",".join(name for name, feature in _NAMES.items() if mask & feature) or "none"
