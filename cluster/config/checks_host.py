"""Rules that span several fields of one host: nodes, CPUs, distances, features, policies, contents.

What the kernel would refuse when the run starts (a policy with the wrong nodes, a feature without the one
that it needs) is refused here already.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from privmem.cluster.config.distances import distance_matrix, via_order
from privmem.cluster.config.fields import nearest, wrong
from privmem.cluster.config.models import (
    DISTANCE_MAX,
    LOCAL_DISTANCE,
    CompressedRam,
    HostConfig,
    NodeConfig,
    PolicyConfig,
    ProcessConfig,
)
from privmem.cluster.config.shape import Path
from privmem.cluster.config.tree import found
from privmem.cluster.config.units import format_size, format_time
from privmem.cluster.config.workload_models import GeneratorContent, RecordingContent, ReplayWorkload
from privmem.scheduler.abi import PAGE_SIZE


@dataclass(frozen=True, slots=True)
class Mistake:
    """What is wrong at `path`, and the places that it was concluded from (when empty, `path` alone)."""

    path: Path
    text: str
    uses: tuple[Path, ...] = ()


def not_among(name: str, known: list[str], noun: str) -> str:
    """The text for a reference to something that does not exist."""
    allowed = ", ".join(known) if known else "none, as there is none"
    return wrong(f"{found(name)}, not the name of {noun}", allowed, nearest(name, known))


def check_host(host: HostConfig, place: Path) -> list[Mistake]:
    """Every mistake of one host."""
    mistakes = [
        *_node_ids(host, place),
        *_cpus(host, place),
        *_distances(host, place),
    ]
    for n, node in enumerate(host.nodes):
        mistakes += _node(node, (*place, "nodes", n))
    first: dict[str, int] = {}
    for n, process in enumerate(host.processes):
        here: Path = (*place, "processes", n)
        if process.name in first:
            text = wrong(f"{process.name!r}, taken by processes.{first[process.name]}", "another name")
            uses = ((*here, "name"), (*place, "processes", first[process.name], "name"))
            mistakes.append(Mistake((*here, "name"), text, uses))
        first.setdefault(process.name, n)
        mistakes += _process(process, host, place, here)
    return mistakes


def _each_node(host: HostConfig, place: Path, *keys: str) -> tuple[Path, ...]:
    """The places of these fields in all nodes."""
    return tuple((*place, "nodes", n, key) for n in range(len(host.nodes)) for key in keys)


def _node_list(host: HostConfig) -> str:
    return ", ".join(str(node.id) for node in host.nodes)


def _known_ids(host: HostConfig) -> list[int]:
    """The node ids, or none when two are equal: then nobody knows what a reference means."""
    ids = [node.id for node in host.nodes]
    return ids if len(set(ids)) == len(ids) else []


def _node_ids(host: HostConfig, place: Path) -> Iterator[Mistake]:
    ids = _each_node(host, place, "id")
    first: dict[int, int] = {}
    for n, node in enumerate(host.nodes):
        if node.id in first:
            text = wrong(f"{node.id}, the id of nodes.{first[node.id]}", "an id of its own")
            yield Mistake(ids[n], text, (ids[n], ids[first[node.id]]))
        first.setdefault(node.id, n)


def _cpus(host: HostConfig, place: Path) -> Iterator[Mistake]:
    """Every CPU is on exactly one node."""
    first: dict[int, int] = {}
    lists = _each_node(host, place, "cpus")
    total: Path = (*place, "cpus")
    for n, node in enumerate(host.nodes):
        for m, cpu in enumerate(node.cpus):
            here: Path = (*lists[n], m)
            if cpu >= host.cpus:
                yield Mistake(here, _no_such_cpu(cpu, host), (here, total))
            elif cpu in first:
                text = wrong(f"{cpu}, a CPU of nodes.{first[cpu]}", "each CPU on one node")
                yield Mistake(here, text, (here, lists[first[cpu]]))
            first.setdefault(cpu, n)
    lost = [cpu for cpu in range(host.cpus) if cpu not in first]
    if not any(node.cpus for node in host.nodes):
        text = wrong("no node with cpus", "every CPU on one node")
        yield Mistake((*place, "nodes"), text, (*lists, total))
    elif lost:
        text = wrong(f"{host.cpus}, but CPU {lost[0]} is on no node", "every CPU on one node")
        yield Mistake(total, text, (*lists, total))


def _no_such_cpu(cpu: int, host: HostConfig) -> str:
    return wrong(str(cpu), f"0 to {host.cpus - 1}, as the host has cpus: {host.cpus}")


def _distances(host: HostConfig, place: Path) -> Iterator[Mistake]:
    if host.distances is not None:
        yield from _given_distances(host, place)
        return
    links = _each_node(host, place, "id", "via", "hop")
    known = _known_ids(host)
    sound = bool(known)
    for n, node in enumerate(host.nodes):
        here: Path = (*place, "nodes", n)
        if node.via is not None and known and node.via not in known:
            sound = False
            text = wrong(f"{node.via}, not a node of this host", _node_list(host))
            yield Mistake((*here, "via"), text, ((*here, "via"), *_each_node(host, place, "id")))
        if (node.via is None) != (node.hop is None):
            sound = False
            one, other = ("hop", "via") if node.via is None else ("via", "hop")
            text = wrong(f"{one} without {other}", "both, or neither")
            yield Mistake((*here, one), text, ((*here, one), (*here, other)))
    order = via_order(host.nodes)
    if sound and len(order) < len(host.nodes):
        circle = [n for n in range(len(host.nodes)) if n not in order]
        ids = ", ".join(str(host.nodes[n].id) for n in circle)
        text = wrong(
            f"a circle: of nodes {ids} each is reached through another", "a way to a node without via"
        )
        yield Mistake((*place, "nodes", circle[0], "via"), text, links)
    elif sound:
        farthest = max(max(row) for row in distance_matrix(host))
        if farthest > DISTANCE_MAX:
            text = wrong(f"hops that add up to a distance of {farthest}", f"at most {DISTANCE_MAX}")
            yield Mistake((*place, "nodes"), text, links)


def _given_distances(host: HostConfig, place: Path) -> Iterator[Mistake]:
    matrix, nr_nodes = host.distances or (), len(host.nodes)
    here: Path = (*place, "distances")
    if [len(row) for row in matrix] != [nr_nodes] * nr_nodes:
        lengths = ", ".join(str(len(row)) for row in matrix)
        text = wrong(f"rows of length {lengths}", f"{nr_nodes} rows of {nr_nodes}, one for each node")
        yield Mistake(here, text, (here, (*place, "nodes")))
        return
    for n, row in enumerate(matrix):
        for m, distance in enumerate(row):
            if (distance == LOCAL_DISTANCE) != (n == m):
                allowed = "10 (a node to itself)" if n == m else f"11 to {DISTANCE_MAX} (a node to another)"
                yield Mistake((*here, n, m), wrong(str(distance), allowed))
    for n, node in enumerate(host.nodes):
        for key in ("via", "hop"):
            if getattr(node, key) is not None:
                link: Path = (*place, "nodes", n, key)
                yield Mistake(
                    link, wrong(f"{key} beside the host's distances", "one of the two"), (link, here)
                )


def _node(node: NodeConfig, here: Path) -> Iterator[Mistake]:
    memory, device = (*here, "memory"), (*here, "device")
    if node.memory is None and node.device is None:
        yield Mistake(here, wrong("neither memory nor device", "one of them"), (memory, device))
    elif node.memory is not None and node.device is not None:
        yield Mistake(device, wrong("both memory and device", "one of them"), (memory, device))
    if node.link_bandwidth_bytes_per_s is not None and not node.link_latency_ns:
        text = wrong("a bandwidth without a latency that load could raise", "with `link_latency` only")
        yield Mistake((*here, "link_bandwidth"), text)
    private, features = (*here, "private"), (*here, "features")
    if node.private and node.cpus:
        text = wrong("CPUs on a private node", "none, since their kernel would allocate there")
        yield Mistake((*here, "cpus"), text, ((*here, "cpus"), private))
    if node.features and not node.private:
        text = wrong("features of a public node, which has all", "with `private: true` only")
        yield Mistake(features, text, (features, private))
    if node.owner_demotes and (not node.private or isinstance(node.memory, CompressedRam)):
        text = wrong("an owner of a public node or of compressed RAM, whose service has rules", "false")
        yield Mistake((*here, "owner_demotes"), text, ((*here, "owner_demotes"), private, memory))
    for n, feature in enumerate(node.features):
        if feature in node.features[:n]:
            yield Mistake((*features, n), wrong(f"{feature!r} twice", "once"))
    if isinstance(node.memory, CompressedRam) and open_to_writes(node):
        text = wrong("compressed RAM that users may write in place", "a private node without user_write")
        uses = (memory, private, features, (*here, "write_control"), (*here, "service"))
        yield Mistake(memory, text, uses)


def open_to_writes(node: NodeConfig) -> bool:
    """Whether users may write to a node in place, without the configuration saying that it wants to see that."""
    if not node.private:
        return True
    told = not node.write_control and node.service != "lease"
    return "user_write" in node.features and not told


def _process(process: ProcessConfig, host: HostConfig, place: Path, here: Path) -> Iterator[Mistake]:
    if process.cpu >= host.cpus:
        yield Mistake((*here, "cpu"), _no_such_cpu(process.cpu, host), ((*here, "cpu"), (*place, "cpus")))
    if process.stop_ns and process.stop_ns <= process.start_ns:
        text = wrong(format_time(process.stop_ns), f"a time after its start, {format_time(process.start_ns)}")
        yield Mistake((*here, "stop"), text, ((*here, "stop"), (*here, "start")))
    yield from _policy(process.policy, host, place, (*here, "policy"))
    if isinstance(process.content, GeneratorContent):
        times = [phase.at_ns for phase in process.content.phases]
        for n in range(1, len(times)):
            if times[n] <= times[n - 1]:
                at: Path = (*here, "content", "phases", n, "at")
                text = wrong(format_time(times[n]), f"a time after that before, {format_time(times[n - 1])}")
                yield Mistake(at, text, (at, (*here, "content", "phases", n - 1, "at")))
    workload = process.workload
    if isinstance(workload, ReplayWorkload):
        return
    if isinstance(process.content, RecordingContent):
        content, kind = (*here, "content", "kind"), (*here, "workload", "kind")
        text = wrong(
            f"'recording' with the workload {workload.kind!r}", "kind: generator, or a replay workload"
        )
        yield Mistake(content, text, (content, kind))
    if workload.size_bytes % PAGE_SIZE:
        text = wrong(format_size(workload.size_bytes), "a multiple of the 4KiB page")
        yield Mistake((*here, "workload", "size"), text)


def _policy(policy: PolicyConfig, host: HostConfig, place: Path, here: Path) -> Iterator[Mistake]:
    """What `mpol_new` and `do_set_mempolicy` of Linux 6.1 refuse with EINVAL."""
    mode, nodes, flags = ((*here, key) for key in ("mode", "nodes", "flags"))
    takes_none = policy.mode in ("default", "local")
    if takes_none and policy.nodes:
        yield Mistake(nodes, wrong(f"nodes with mode {policy.mode!r}", "none"), (nodes, mode))
    if not takes_none and not policy.nodes:
        yield Mistake(mode, wrong(f"{policy.mode!r} without nodes", "with nodes: [...]"), (nodes, mode))
    if takes_none and policy.flags:
        yield Mistake(flags, wrong(f"flags with mode {policy.mode!r}", "none"), (flags, mode))
    if len(policy.flags) > 1:
        yield Mistake(flags, wrong(f"{len(policy.flags)} flags", "static_nodes or relative_nodes, not both"))
    known = _known_ids(host)
    for n, nid in enumerate(policy.nodes):
        # Relative nodes are positions, counted round and round: any number names a node.
        if known and nid not in known and "relative_nodes" not in policy.flags:
            text = wrong(f"{nid}, not a node of this host", _node_list(host))
            yield Mistake((*nodes, n), text, ((*nodes, n), flags, *_each_node(host, place, "id")))
