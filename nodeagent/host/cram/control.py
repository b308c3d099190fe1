"""The service in a run: a device's reports drive pressure, balloon and gate, and time passes meanwhile.

What the drivers of the generations do with what their device says. v4: the low threshold is full pressure, the high
one none (drivers/cxl_compression.py). F1: the ratio sets the balloon's size, and the gate is closed until it has
that. F3: the capacity sets the balloon's size, occupants move politely meanwhile; at the low threshold the owner
withdraws the node until the high one, and while it is withdrawn occupants are reclaimed. Between two reports no
more pages come in than surely fit (`Node.store_room_pages`), for none of the generations asks before each page: an
addition of ours. The worker works in rounds, each of which takes as long as its moves and writes do.

Every moment counts as the highest of these states: REFUSING, when the device has no room that is certain for a
single page; CLOSED, when the gate lets none in; PRESSURE, when the device holds less than it shows; NORMAL.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np

from privmem.nodeagent.host.cram import balloon, capacity, gate
from privmem.nodeagent.host.cram.pressure import set_pressure
from privmem.nodeagent.host.cram.service import (
    PRESSURE_FULL,
    RATIO_ONE,
    STATES,
    CramNode,
    Generation,
)
from privmem.nodeagent.host.memory import Memory, Node
from privmem.nodeagent.host.memory_failure import memory_failure
from privmem.scheduler.messages import CapacityReport


class State(IntEnum):
    """Of a node, in ascending order of need; names as in service.STATES."""

    NORMAL = 0
    PRESSURE = 1
    CLOSED = 2
    REFUSING = 3


def state_of(memory: Memory, cram: CramNode) -> State:
    """The state of a node now."""
    if memory.nodes[cram.nid].store_room_pages < 1:
        return State.REFUSING
    if cram.gate.closed:
        return State.CLOSED
    return State.PRESSURE if cram.target_pages or cram.pressure else State.NORMAL


def hear(memory: Memory, node: Node, report: CapacityReport) -> None:
    """The driver's answer to what its device says."""
    node.unacknowledged_pages -= report.count
    node.credit_pages = report.room_pages
    cram = memory.cram.nodes[node.nid]
    cram.device_used_bytes = report.used_bytes
    match memory.cram.generation:
        case Generation.V4:
            cram.real_ratio = max(RATIO_ONE, report.ratio)
            pressure = PRESSURE_FULL if report.low else 0
            if pressure != cram.pressure:
                set_pressure(memory, node.nid, pressure)
        case Generation.F1:
            ratio = min(max(RATIO_ONE, report.ratio), cram.nominal_ratio)
            if ratio != cram.real_ratio:
                capacity.set_compression_ratio(memory, node.nid, ratio)
        case Generation.F3:
            cram.real_ratio = max(RATIO_ONE, report.ratio)
            if cram.total_pages - cram.target_pages != min(report.capacity_pages, cram.total_pages):
                capacity.set_capacity(memory, node.nid, report.capacity_pages)
            if report.low == cram.gate.alloc_allowed:
                gate.set_no_alloc(memory, node.nid, report.low)


def lose(memory: Memory, node: Node, dpa: np.ndarray) -> list[list[Any]]:
    """The device refused pages that it had taken before: their content is gone, and whoever touches one gets
    SIGBUS. What was lost: [time_ns, node, page on the device, slot of the page table, version].
    """
    cram = memory.cram.nodes[node.nid]
    rows: list[list[Any]] = []
    for pfn in (dpa + node.start_pfn).tolist():
        slot, version = int(memory.frames.rmap[pfn]), int(memory.frames.version[pfn])
        memory_failure(memory, pfn, cram.owner)
        rows.append([memory.now_ns, node.nid, pfn - node.start_pfn, slot, version])
    cram.lost_pages += len(rows)
    memory.vmstat.add("cram_refused_accepted", len(rows))
    return rows


def work(memory: Memory, start_ns: int, until_ns: int, kill: balloon.Kill) -> None:
    """The end of a slice: let the worker go on, and account for the time. May raise NeedsExtent: then it is called
    again.
    """
    controlled = [cram for cram in memory.cram.nodes.values() if cram.controlled]
    states = [state_of(memory, cram) for cram in controlled]
    if memory.cram.generation is not Generation.V4:
        for cram in controlled:
            _converge(memory, cram, start_ns, until_ns, kill)
    for cram, state in zip(controlled, states, strict=True):
        cram.state_ns[state] += until_ns - start_ns
        usable_pages = memory.nodes[cram.nid].usable_pages
        least = cram.usable_least_pages
        cram.usable_least_pages = usable_pages if least < 0 else min(least, usable_pages)


def _converge(memory: Memory, cram: CramNode, start_ns: int, until_ns: int, kill: balloon.Kill) -> None:
    """Rounds until the balloon has its size, nothing helps, or the worker is busy beyond this slice."""
    gained = 1
    while gained and cram.busy_until_ns < until_ns and not balloon.settled(memory, cram):
        begun_ns = max(cram.busy_until_ns, start_ns)
        charged_ns, memory.charge_ns = memory.charge_ns, 0
        try:
            gained = balloon.converge_round(memory, cram, kill)
        finally:
            cram.busy_until_ns = begun_ns + memory.charge_ns
            memory.charge_ns = charged_ns
    balloon.finish(memory, cram)


def sample(memory: Memory, cram: CramNode) -> dict[str, int]:
    """Columns of the time series `cram`, but for when and who."""
    node = memory.nodes[cram.nid]
    return {
        "state": int(state_of(memory, cram)),
        "shown_pages": cram.total_pages,
        "usable_pages": node.usable_pages,
        "usable_least_pages": cram.usable_least_pages,
        "balloon_target_pages": cram.target_pages,
        "balloon_pages": cram.balloon_pages,
        "resident_pages": node.managed_pages - node.free_pages - cram.balloon_pages,
        "room_pages": max(0, node.store_room_pages),
        "ratio": cram.real_ratio,
        "pressure": cram.pressure,
        "device_used_bytes": cram.device_used_bytes,
        "written_in_place_pages": cram.written_in_place_pages,
        "lost_pages": cram.lost_pages,
        **{f"{name}_ns": spent_ns for name, spent_ns in zip(STATES, cram.state_ns, strict=True)},
    }
