"""The node distance matrix of a host, from `via` and `hop` or as given: what the firmware's SLIT tells a
real one.
"""

from __future__ import annotations

from collections.abc import Sequence

from privmem.cluster.config.models import LOCAL_DISTANCE, REMOTE_DISTANCE, HostConfig, NodeConfig


def via_order(nodes: Sequence[NodeConfig]) -> list[int]:
    """Positions of the nodes, each after the one that it is reached through. Those on a circle, or behind a
    node that does not exist, are left out."""
    order: list[int] = []
    reached: list[int] = []
    pending = list(range(len(nodes)))
    while True:
        ready = [n for n in pending if nodes[n].via is None or nodes[n].via in reached]
        if not ready:
            return order
        order += ready
        reached += [nodes[n].id for n in ready]
        pending = [n for n in pending if n not in ready]


def distance_matrix(host: HostConfig) -> tuple[tuple[int, ...], ...]:
    """Distances, rows and columns in the order of `host.nodes`; the host has passed the checks."""
    if host.distances is not None:
        return host.distances
    nodes = host.nodes
    position = {node.id: n for n, node in enumerate(nodes)}
    matrix = [[LOCAL_DISTANCE] * len(nodes) for _ in nodes]
    placed: list[int] = []
    for n in via_order(nodes):
        via, hop = nodes[n].via, nodes[n].hop
        for other in placed:
            distance = REMOTE_DISTANCE if via is None else matrix[other][position[via]] + (hop or 0)
            matrix[n][other] = matrix[other][n] = distance
        placed.append(n)
    return tuple(tuple(row) for row in matrix)
