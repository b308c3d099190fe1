"""A device class of a user's own: what a plug-in file hands over.

    # slowmem.py, named by `--plugin slowmem.py`; in the configuration {class: plugin, plugin: slowmem, ...}
    from privmem.nodeagent.device.plugin import DeviceClass

    DEVICE_CLASSES = [DeviceClass("slowmem", read_ns=900, write_ns=4000, read_bandwidth=8 * 10**9)]

docs/plugins.md tells the whole story.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from privmem.nodeagent.device.device import Device
from privmem.nodeagent.latency_curve import Curve
from privmem.scheduler.tiers import ADISTANCE_DAX


@dataclass(frozen=True, slots=True)
class DeviceClass:
    """Timing, place in the tiers, and participant of a device class. Raises ValueError for figures that are none.

    What a configuration sets of a device (`read_latency`, `loaded_latency`, ...) comes before what the class says.
    """

    name: str
    #: Latencies at rest.
    read_ns: int
    write_ns: int
    #: Bytes per second; 0 for writes: as for reads.
    read_bandwidth: int
    write_bandwidth: int = 0
    #: See nodeagent/latency_curve.py; flat by default.
    curve: Curve = ((0, 1000),)
    #: Abstract distance: which memory tier its nodes are in (Linux: DRAM 576, dax/kmem 2880).
    adistance: int = ADISTANCE_DAX
    #: Whether the device is told what its pages hold.
    stores: bool = False
    #: Makes the participant of a device from its spec (see `Device`; `spec["options"]` holds the configuration's
    #: `options`) and the arrays of page contents: `Device` or a subclass.
    make: Callable[[dict[str, Any], dict[str, np.ndarray]], Device] = Device

    def __post_init__(self) -> None:
        """Refuse what would only fail later, on another machine."""
        for field in ("read_ns", "write_ns", "read_bandwidth", "adistance"):
            if not _is_whole(getattr(self, field)) or getattr(self, field) < 1:
                raise ValueError(f"{self.name}: {field}: found {getattr(self, field)!r}; allowed: 1 or more")
        if not _is_whole(self.write_bandwidth) or self.write_bandwidth < 0:
            raise ValueError(
                f"{self.name}: write_bandwidth: found {self.write_bandwidth!r}; allowed: 0 or more"
            )
        rising = all(a[0] < b[0] and a[1] <= b[1] for a, b in itertools.pairwise(self.curve))
        whole = all(len(p) == 2 and _is_whole(p[0]) and _is_whole(p[1]) for p in self.curve)
        if not (whole and rising and self.curve and self.curve[0][0] == 0 and self.curve[0][1] >= 1000):
            raise ValueError(
                f"{self.name}: curve: found {self.curve!r}; allowed: (0, 1000) first, then pairs that rise"
            )

    def timing(self) -> dict[str, Any]:
        """As `timing.class_timing` gives it for a class of privmem's own."""
        return {
            "read_ns": self.read_ns,
            "write_ns": self.write_ns,
            "decompress_ns": 0,
            "read_bandwidth": self.read_bandwidth,
            "write_bandwidth": self.write_bandwidth or self.read_bandwidth,
            "curve": [list(point) for point in self.curve],
        }


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
