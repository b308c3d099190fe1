"""What a program asks of drivers and the network stack between its accesses.

A program whose workload has such calls stops at the access before which the next one comes; all else of it is
accesses, as of any other program (program.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from privmem.nodeagent.host.drivers.gpu import GpuCalls
from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.messages import MessageCalls
from privmem.nodeagent.host.task import Task


class DeviceCalls(Protocol):
    """The calls of one program, in order."""

    @property
    def next_at(self) -> int:
        """Before which access, counted from 0, the next call comes."""

    @property
    def figures(self) -> dict[str, Any]:
        """What came of them, for the summary."""

    def call(self, memory: Memory) -> int:
        """Make the next call; the time that it takes. May raise NeedsExtent: then it is simply made again."""

    def release(self, memory: Memory) -> None:
        """The program is gone, or gives up the device: nothing is pinned or held for it any more."""

    def snapshot(self) -> dict[str, Any]:
        """Where the calls stand, and what they hold."""

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Go on from a snapshot."""


_KINDS: dict[str, Callable[[dict[str, Any], str, Task, int], DeviceCalls]] = {
    "gpu": GpuCalls,
    "messages": MessageCalls,
}


def make_calls(spec: dict[str, Any] | None, name: str, task: Task, base_vpn: int) -> DeviceCalls | None:
    """The calls of a plain spec, which "kind" names; None for a program without any. `base_vpn`: its first page."""
    return None if spec is None else _KINDS[spec["kind"]](spec, name, task, base_vpn)
