"""The topology that a configuration describes, as the rules take it: for `privmem topo` and for the hosts."""

from __future__ import annotations

from privmem.cluster.config.checks_design import granted_features
from privmem.cluster.config.distances import distance_matrix
from privmem.cluster.config.models import (
    Config,
    DeviceConfig,
    HostConfig,
    NodeConfig,
    PluginDevice,
    device_of,
    seen_bytes,
)
from privmem.scheduler import nodemask
from privmem.scheduler.abi import PAGE_SIZE
from privmem.scheduler.isolation import get_design
from privmem.scheduler.tiers import ADISTANCE_BY_CLASS
from privmem.scheduler.topology import ZONE_MOVABLE, ZONE_NORMAL, HostTopology, NodeTopology


def host_topology(config: Config, host: HostConfig, name: str) -> HostTopology:
    """Nodes in ascending order of their ids, with distances, of the host `name` of a host entry."""
    order = sorted(range(len(host.nodes)), key=lambda at: host.nodes[at].id)
    matrix = distance_matrix(host)
    nodes = tuple(_node_topology(config, host.nodes[at], name) for at in order)
    return HostTopology(nodes, tuple(tuple(matrix[a][b] for b in order) for a in order))


def device_name(node: NodeConfig, host: str) -> str:
    """Name of the device behind a node: its own one is called after host and node."""
    return node.device or f"{host}.n{node.id}"


def backing_device(config: Config, node: NodeConfig) -> DeviceConfig:
    """The device behind a node of a configuration that has passed the checks."""
    device = device_of(config, node)
    assert device is not None
    return device


def adistance_of(config: Config, device: DeviceConfig) -> int:
    """Abstract distance of a device's nodes."""
    if isinstance(device, PluginDevice):
        return config.plugins[device.plugin].device_class.adistance
    return ADISTANCE_BY_CLASS[device.device_class]


def terminal_nodes(config: Config, host: HostConfig) -> int:
    """Nodes of compressed RAM, whose pages are never demoted further."""
    return nodemask.of(
        node.id for node in host.nodes if backing_device(config, node).device_class == "compressed-ram"
    )


def _node_topology(config: Config, node: NodeConfig, host: str) -> NodeTopology:
    device = backing_device(config, node)
    return NodeTopology(
        nid=node.id,
        cpus=tuple(sorted(node.cpus)),
        private=node.private,
        features=granted_features(get_design(config.design), node),
        # Memory of a node without CPUs comes by hotplug and is onlined movable, as dax/kmem does.
        zone=ZONE_NORMAL if node.cpus else ZONE_MOVABLE,
        adistance=adistance_of(config, device),
        device=device_name(node, host),
        span_pages=seen_bytes(device) // PAGE_SIZE,
    )
