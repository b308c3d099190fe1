"""A program that sends messages: when it takes buffers of the network stack, and when they are free again.

Each message takes its buffers (netbuf.py: near the target device if that has room, else local), the program's bytes
are copied into them, and the device reads them. So many messages are in flight; the next one waits until the oldest
is sent, whose buffers are freed. In a burst more are in flight, so that the device's memory may not hold them. A
message that no memory can be had for is dropped. Left out: headers and sizes below a page, receiving, sockets'
limits, acknowledgements that take time of their own.
"""

from __future__ import annotations

from typing import Any

from privmem.nodeagent.host import netbuf
from privmem.nodeagent.host.costs import ACCESS_BYTES, COPY_LINES_IN_FLIGHT, NETBUF_NS
from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.task import Task
from privmem.scheduler.abi import PAGE_SIZE

#: After the last call there is none before any access.
NO_CALL = 1 << 62


class MessageCalls:
    """The messages of one program, each a call before so many of its accesses; the last call waits for all of them.

    `spec`: nid of the target device (-1 for one without a node), message_pages, message_accesses, messages,
    in_flight, burst and burst_every (in messages; 0 for no bursts).
    """

    def __init__(self, spec: dict[str, Any], name: str, task: Task, _base_vpn: int) -> None:
        self.spec = spec
        self.holder = f"messages of {name}"
        self.task = task
        #: How many messages were made or dropped; one more when the last one is sent.
        self.number = 0
        #: Buffers of the messages in flight, oldest first.
        self.in_flight: list[list[int]] = []
        #: Buffers that the next message has already.
        self.taken: list[int] = []
        self.dropped = 0
        self.in_flight_max = 0
        #: Node -> buffers that were on it.
        self.buffers: dict[int, int] = {}

    @property
    def next_at(self) -> int:
        """Before which access the next call comes; NO_CALL when there is none."""
        if self.number > self.spec["messages"]:
            return NO_CALL
        return int(self.number * self.spec["message_accesses"])

    @property
    def figures(self) -> dict[str, Any]:
        """For the summary."""
        return {
            "messages": min(self.number, self.spec["messages"]),
            "messages_dropped": self.dropped,
            "messages_in_flight_max": self.in_flight_max,
            "buffers_by_node": dict(sorted(self.buffers.items())),
        }

    def call(self, memory: Memory) -> int:
        """Make the next message, or wait for the last ones; the time that it takes. May raise NeedsExtent: then
        it is simply made again.
        """
        if self.number == self.spec["messages"]:
            self.release(memory)
        else:
            while len(self.in_flight) >= self._most_in_flight():
                self._sent(memory, self.in_flight.pop(0))
            self._message(memory)
        self.number += 1
        return memory.take_charge()

    def release(self, memory: Memory) -> None:
        """All messages are sent, and the socket is closed."""
        for pfn in self.taken:
            netbuf.free_buffer(memory, pfn)
        for message in self.in_flight:
            self._sent(memory, message)
        self.taken, self.in_flight = [], []

    def _most_in_flight(self) -> int:
        burst = int(self.spec["burst"])
        bursting = burst and self.number % self.spec["burst_every"] < burst
        return max(burst if bursting else 0, int(self.spec["in_flight"]))

    def _message(self, memory: Memory) -> None:
        nid = self.spec["nid"] if self.spec["nid"] >= 0 else None
        while len(self.taken) < self.spec["message_pages"]:
            pfn = netbuf.alloc_buffer(memory, nid, self.task.cpu_nid, self.holder)
            if pfn < 0:
                for other in self.taken:
                    netbuf.free_buffer(memory, other)
                self.taken = []
                self.dropped += 1
                return
            self.taken.append(pfn)
        lines = PAGE_SIZE // ACCESS_BYTES
        for pfn in self.taken:
            node = memory.nodes[memory.frames.nid_of(pfn)]
            node.migrated_write_bytes += PAGE_SIZE
            memory.charge_ns += NETBUF_NS + node.write_ns * lines // COPY_LINES_IN_FLIGHT
            self.buffers[node.nid] = self.buffers.get(node.nid, 0) + 1
        self.in_flight.append(self.taken)
        self.taken = []
        self.in_flight_max = max(self.in_flight_max, len(self.in_flight))

    def _sent(self, memory: Memory, message: list[int]) -> None:
        """The device has read the message."""
        for pfn in message:
            memory.nodes[memory.frames.nid_of(pfn)].migrated_read_bytes += PAGE_SIZE
            netbuf.free_buffer(memory, pfn)

    # -- state

    def snapshot(self) -> dict[str, Any]:
        """Plain form."""
        return {
            "number": self.number,
            "in_flight": [list(message) for message in self.in_flight],
            "taken": list(self.taken),
            "dropped": self.dropped,
            "in_flight_max": self.in_flight_max,
            "buffers": dict(sorted(self.buffers.items())),
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Take over a snapshot."""
        self.number = snapshot["number"]
        self.in_flight = [list(message) for message in snapshot["in_flight"]]
        self.taken = list(snapshot["taken"])
        self.dropped = snapshot["dropped"]
        self.in_flight_max = snapshot["in_flight_max"]
        self.buffers = {int(nid): int(count) for nid, count in snapshot["buffers"].items()}
