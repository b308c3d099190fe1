"""The way from a host to the device of a node: ports and switch hops, with a bandwidth of their own.

Each host has its own, so a device that several hosts share can be idle and a host's link to it full, or the other
way round. It adds its latency to that of the device, more under load, as memory behind a CXL port does
(nodeagent/latency_curve.py). Figures are the configuration's: by default the class's latency includes one link.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from privmem.nodeagent.latency_curve import CXL_CURVE, loaded_latency_ns


class Link:
    """`latency_ns` at rest, 0 for none; `bandwidth` in bytes per second each way, 0 for no bound."""

    def __init__(self, latency_ns: int, bandwidth: int) -> None:
        self.latency_ns = latency_ns
        self.bandwidth = bandwidth
        #: What it adds to a read, a write in this epoch.
        self.added_ns = [latency_ns, latency_ns]

    def close_epoch(self, moved_bytes: tuple[int, int], epoch_ns: int, device_ns: Sequence[int]) -> None:
        """Set what it adds in the next epoch by the bytes (read, written) of this one, which waited for the device
        too.
        """
        if self.latency_ns and self.bandwidth:
            self.added_ns = [
                loaded_latency_ns(
                    self.latency_ns, moved, epoch_ns, self.bandwidth, CXL_CURVE, before, rest_ns=device
                )
                for moved, before, device in zip(moved_bytes, self.added_ns, device_ns, strict=True)
            ]

    def snapshot(self) -> list[int]:
        return list(self.added_ns)

    def restore(self, snapshot: Any) -> None:
        self.added_ns = list(snapshot)
