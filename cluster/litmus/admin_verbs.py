"""What an administrator does in a litmus test: files, hotplug, cgroups."""

from __future__ import annotations

import errno
from typing import Any

from privmem.cluster.litmus.world import World, check
from privmem.nodeagent.host import memcg
from privmem.scheduler.abi import PAGE_SIZE
from privmem.scheduler.topology import ZONE_MOVABLE, ZONE_NORMAL

Values = dict[str, Any]


def _write(world: World, _actor: str, values: Values) -> None:
    path, text = world.path(values["word"]), values["text"]
    if path.endswith("/cgroup.procs") and text in world.processes:
        text = str(world.processes[text].pid)
    check(world.kernel.sysfs.write(path, text))


def _read(world: World, _actor: str, values: Values) -> str:
    text = world.kernel.sysfs.read(world.path(values["word"]))
    if isinstance(text, int):
        check(text)
    return str(text)


def _plug(world: World, _actor: str, values: Values) -> None:
    zone = ZONE_NORMAL if "kernel_zone" in values else ZONE_MOVABLE
    claim = world.claim_of(values["node"], values)
    check(world.kernel.plug(values["node"], claim.features, owner=claim.owner, zone=zone))


def _online(world: World, _actor: str, values: Values) -> None:
    check(world.kernel.online(values["node"], ZONE_NORMAL if "kernel_zone" in values else ZONE_MOVABLE))


def _offline(world: World, _actor: str, values: Values) -> None:
    check(world.kernel.offline(values["node"], values.get("first")))


def _unplug(world: World, _actor: str, values: Values) -> None:
    check(world.kernel.unplug(values["node"]))


def _cgroup(world: World, _actor: str, values: Values) -> None:
    if values["word"] in world.kernel.cgroups:
        raise OSError(errno.EEXIST, "EEXIST")
    world.kernel.create_cgroup(values["word"], values.get("parent", ""))


def _mems(world: World, _actor: str, values: Values) -> None:
    check(world.kernel.write_mems(values["cgroup"], values["nodes"]))


def _memory_reclaim(world: World, _actor: str, values: Values) -> None:
    check(memcg.memory_reclaim(world.kernel.memory, values["cgroup"], values["size"] // PAGE_SIZE))


def _memory_max(world: World, _actor: str, values: Values) -> None:
    check(world.kernel.write_memory_max(values["cgroup"], values["size"] // PAGE_SIZE))


def _move(world: World, _actor: str, values: Values) -> None:
    check(world.kernel.attach(world.process(values["process"]), values["cgroup"]))


def _demotion(world: World, _actor: str, values: Values) -> None:
    text = "1" if "on" in values else "0"
    check(world.kernel.sysfs.write("/sys/kernel/mm/numa/demotion_enabled", text))


def _drop_caches(world: World, _actor: str, _values: Values) -> int:
    world.kernel.sync()
    return world.kernel.drop_caches()


def _hugepages(world: World, _actor: str, values: Values) -> None:
    node = values.get("node")
    where = "/sys/kernel/mm" if node is None else f"/sys/devices/system/node/node{node}"
    path = f"{where}/hugepages/hugepages-2048kB/nr_hugepages"
    check(world.kernel.sysfs.write(path, str(values["number"])))


def _compact(world: World, _actor: str, values: Values) -> None:
    check(world.kernel.sysfs.write(f"/sys/devices/system/node/node{values['node']}/compact", "1"))


VERBS = [
    ("write WORD TEXT", _write, "write a file; paths may have names: /proc/A/..., .../node/nodeP/..."),
    ("cat WORD", _read, "read such a file"),
    (
        "plug NODE [features FEATURES] [owner WORD] [kernel_zone]",
        _plug,
        "a driver (who has registered, if somebody has) claims the node with its wishes, adds its memory and puts "
        "it online (movable)",
    ),
    ("online NODE [kernel_zone]", _online, "put added memory online again; EINVAL when it is online already"),
    (
        "offline NODE [from FIRST:NUMBER]",
        _offline,
        "all memory of the node goes offline, or the range that was added from that page; its pages move out; "
        "EINVAL when it is offline already",
    ),
    ("unplug NODE", _unplug, "offline, and remove"),
    ("cgroup WORD [in PARENT:CGROUP]", _cgroup, "make a cgroup"),
    ("mems CGROUP NODES", _mems, "write cpuset.mems"),
    ("memory_reclaim CGROUP SIZE", _memory_reclaim, "write memory.reclaim: EAGAIN when less could be had"),
    ("memory_max CGROUP SIZE", _memory_max, "write memory.max; `admin: write .../memory.max max` lifts it"),
    ("move PROCESS to CGROUP", _move, "write cgroup.procs"),
    ("demotion on|off", _demotion, "/sys/kernel/mm/numa/demotion_enabled"),
    ("drop_caches", _drop_caches, "sync, and forget clean page cache that nobody maps: pages dropped"),
    ("hugepages [NODE] NUMBER", _hugepages, "size of the huge page pool: the global file, or a node's"),
    ("compact NODE", _compact, "write to the node's compact file"),
]
