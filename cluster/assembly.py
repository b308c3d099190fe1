"""From a validated configuration to a plan, and from a plan's entries to participants.

`make_plan` opens recordings and works out everything that participants must agree on: names, node specs, device specs, boot
extents, the table of content sources. `build` makes one participant, on whatever machine it is called.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Any

import numpy as np

from privmem.cluster.config.distances import distance_matrix
from privmem.cluster.config.loader import config_to_plain
from privmem.cluster.config.models import (
    Config,
    CompressedRam,
    DeviceConfig,
    GeneratorContent,
    HostConfig,
    NodeConfig,
    ProcessConfig,
    ReplayWorkload,
)
from privmem.cluster.plan import DEVICE, HOST, SCHEDULER, ParticipantPlan, Plan
from privmem.cluster.seeds import derive_seed
from privmem.cluster.traces import open_trace
from privmem.cluster.workloads import open_stream
from privmem.nodeagent.device.device import Device, initial_credit_pages
from privmem.nodeagent.device.timing import class_timing
from privmem.nodeagent.host.host import Host
from privmem.scheduler import nodemask
from privmem.scheduler.abi import (
    MPOL_F_RELATIVE_NODES,
    MPOL_F_STATIC_NODES,
    PAGE_SIZE,
    Feature,
    Mpol,
)
from privmem.scheduler.participant import Participant
from privmem.scheduler.placement import Scheduler
from privmem.scheduler.tiers import ADISTANCE_BY_CLASS
from privmem.scheduler.topology import ZONE_MOVABLE, ZONE_NORMAL

SCHEDULER_NAME = "scheduler"
#: Device classes whose device keeps the content of pages, rather than the host that stores to it in place.
_STORING = ("compressed-ram", "slow-distributed")
_MODES = {
    "default": Mpol.DEFAULT,
    "local": Mpol.LOCAL,
    "bind": Mpol.BIND,
    "preferred": Mpol.PREFERRED,
    "preferred_many": Mpol.PREFERRED_MANY,
    "interleave": Mpol.INTERLEAVE,
}
_FLAGS = {"static_nodes": MPOL_F_STATIC_NODES, "relative_nodes": MPOL_F_RELATIVE_NODES}


def build(entry: ParticipantPlan, resources: dict[str, np.ndarray]) -> Participant:
    """One participant of a plan. `resources` holds at least the arrays that the entry names."""
    if entry.kind == SCHEDULER:
        return Scheduler(entry.spec)
    if entry.kind == DEVICE:
        return Device(entry.spec, resources)
    streams = [open_stream(spec, resources) for spec in entry.spec["streams"]]
    return Host(entry.spec, streams)
