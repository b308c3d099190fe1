"""`privmem topo FILE`: each host as `numactl -H` would print it, with its tiers, private nodes and pools.

Nodes, sizes and distances are those that a real host shows after boot; a pooled node starts empty there, so
its line says how far it can grow. Equal hosts (`count`) are printed once. Left out: free memory, which only
a run knows.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from privmem.cluster.cli import add_plugin_argument
from privmem.cluster.config import Config, load_config
from privmem.cluster.config.distances import distance_matrix
from privmem.cluster.config.models import (
    CompressedRam,
    DeviceConfig,
    HostConfig,
    NodeConfig,
    class_name,
    seen_bytes,
)
from privmem.cluster.config.topology import backing_device, host_topology, terminal_nodes
from privmem.cluster.config.units import format_size
from privmem.scheduler import nodemask
from privmem.scheduler.tiers import CHUNK, build_tiers

_MB = 1 << 20  # numactl prints MB and means MiB


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("file", metavar="FILE", help="configuration to print")
    add_plugin_argument(parser)
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", dest="overrides", help="override a field"
    )


def run(args: argparse.Namespace) -> int:
    """Print all hosts."""
    print(render(load_config(args.file, args.overrides, plugins=args.plugins)))
    return 0


def render(config: Config) -> str:
    """The whole text."""
    blocks = ["\n".join(_host(config, host)) for host in config.hosts]
    pools = [f"  {name}: {_pool(device)}" for name, device in config.devices.items() if device.pooled]
    if pools:
        blocks.append("\n".join(["pooled devices:", *pools]))
    return "\n\n".join(blocks)


def _host(config: Config, host: HostConfig) -> Iterator[str]:
    order = sorted(range(len(host.nodes)), key=lambda n: host.nodes[n].id)
    nodes = [host.nodes[n] for n in order]
    matrix = distance_matrix(host)
    distances = tuple(tuple(matrix[a][b] for b in order) for a in order)
    count = f" (and {len(host.names) - 1} more, to {host.names[-1]})" if len(host.names) > 1 else ""
    yield f"host {host.names[0]}{count}, isolation design {config.design}"
    yield f"available: {len(nodes)} nodes ({_ranges([node.id for node in nodes])})"
    for node in nodes:
        yield f"node {node.id} cpus:{''.join(f' {cpu}' for cpu in sorted(node.cpus))}"
        yield f"node {node.id} size: {_size(config, node)}"
    yield "node distances:"
    yield "node " + "".join(f"{node.id:>4}" for node in nodes)
    for node, row in zip(nodes, distances, strict=True):
        yield f"{node.id:>3}: " + "".join(f"{distance:>4}" for distance in row)
    yield from _tiers(config, host)
    private = [node for node in nodes if node.private]
    if private:
        yield "private nodes:"
    for node in private:
        yield (
            f"  node {node.id}: features {' '.join(node.features) or 'none'}{_fence(node)}; "
            f"{_backing(config, node)}"
        )


def _tiers(config: Config, host: HostConfig) -> Iterator[str]:
    topology = host_topology(config, host, host.names[0])
    terminal = terminal_nodes(config, host)
    table = build_tiers(topology, demotion=host.sysctl.demotion_enabled, terminal=terminal)
    yield "memory tiers:"
    for number, mask in table.tiers:
        listed = ", ".join(
            f"{nid} (abstract distance {topology.node(nid).adistance})" for nid in nodemask.nodes(mask)
        )
        yield f"  tier {number}, from {number * CHUNK}: node {listed}"
    yield "demotion targets:" + ("" if host.sysctl.demotion_enabled else " none, demotion_enabled is false")
    for nid, targets in sorted(table.targets.items()):
        if targets:
            yield f"  node {nid} -> {', '.join(str(target) for target in targets)}"


def _size(config: Config, node: NodeConfig) -> str:
    device = backing_device(config, node)
    if device.pooled:
        return f"0 MB (grows by extents, to {seen_bytes(device) // _MB} MB at most)"
    return f"{seen_bytes(device) // _MB} MB"


def _fence(node: NodeConfig) -> str:
    return "" if "user_write" in node.features else " (write-fenced)"


def _backing(config: Config, node: NodeConfig) -> str:
    device = backing_device(config, node)
    text = f"backed by {class_name(device)}"
    if node.device is not None:
        text += f" device {node.device}" + (", pooled" if device.pooled else "")
    if isinstance(device, CompressedRam):
        capacity, perceived = format_size(device.capacity_bytes), format_size(device.perceived_bytes)
        text += f", {capacity} seen as {perceived}, {device.codec}"
    return text


def _pool(device: DeviceConfig) -> str:
    capacity, extent = format_size(device.capacity_bytes), format_size(device.extent_bytes)
    quotas = ", ".join(f"{host} {format_size(quota)}" for host, quota in device.quotas_bytes.items())
    limit = f", quotas {quotas}" if quotas else ", no quotas"
    return f"{class_name(device)}, {capacity} in extents of {extent}{limit}"


def _ranges(numbers: list[int]) -> str:
    """`0-2,5`, as numactl prints node lists."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][1] + 1 == number:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in spans)
