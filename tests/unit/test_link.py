"""The link from a host to a device: its own latency, its own bandwidth."""

from pathlib import Path

import pytest

from privmem.cluster import run
from privmem.nodeagent.host.link import Link

EPOCH_NS = 100_000
RACK = """
schema: 1
name: links
engine: {{duration: 3ms, epoch: 100us, slice: 100us}}
devices:
  far: {{class: slow-distributed, capacity: 4MiB, pooled: true, extent: 512KiB, read_latency: 300ns}}
hosts:
  - name: near
    cpus: 1
    nodes: [{{id: 0, memory: {{class: dram, capacity: 2MiB}}, cpus: [0]}}, {{id: 1, device: far, via: 0, hop: 20}}]
    processes: &processes
      - name: p
        threads: 64
        policy: {{mode: bind, nodes: [1]}}
        workload: {{kind: uniform, size: 16KiB, accesses: 100000000}}
  - name: behind
    cpus: 1
    nodes:
      - {{id: 0, memory: {{class: dram, capacity: 2MiB}}, cpus: [0]}}
      - {{id: 1, device: far, via: 0, hop: 20, {link}}}
    processes: *processes
"""


def rates(tmp_path: Path, link: str) -> dict[str, tuple[int, float]]:
    """Host -> (ns a read in the end, GB/s over the last third)."""
    file = tmp_path / "links.yaml"
    file.write_text(RACK.format(link=link))
    rows = [row for row in run(file, validate=True).tables["host_node"].to_pylist() if row["nid"] == 1]
    found = {}
    for host in ("near", "behind"):
        first, last = [row for row in rows if row["host"] == host][-10:][::9]
        found[host] = (last["read_ns"], (last["reads"] - first["reads"]) * 64 / (9 * EPOCH_NS))
    return found


def test_a_switch_adds_its_latency_and_no_more(tmp_path):
    found = rates(tmp_path, "link_latency: 100ns")
    assert found["behind"][0] - found["near"][0] == 100


def test_a_full_link_slows_its_own_host_only(tmp_path):
    found = rates(tmp_path, "link_latency: 100ns, link_bandwidth: 2GB/s")
    assert found["behind"][1] == pytest.approx(2.0, rel=0.03)
    assert found["behind"][0] > 1500
    assert found["near"][1] > 8.0 and found["near"][0] < 500


def test_without_a_bandwidth_load_adds_nothing():
    link = Link(100, 0)
    link.close_epoch((10**9, 10**9), EPOCH_NS, (200, 200))
    assert link.added_ns == [100, 100]


def test_reads_and_writes_have_a_way_each_and_load_passes():
    link = Link(100, 10**9)
    full = 10**9 * EPOCH_NS // 10**9
    link.close_epoch((full * 3, 0), EPOCH_NS, (200, 200))
    assert link.added_ns == [
        700,
        100,
    ]  # three times too much at 300 ns an access: 900 ns let all of it through
    copy = Link(100, 10**9)
    copy.restore(link.snapshot())
    copy.close_epoch((0, 0), EPOCH_NS, (200, 200))
    assert (link.added_ns, copy.added_ns) == ([700, 100], [100, 100])


def test_a_bandwidth_needs_a_latency(tmp_path, capsys):
    from privmem.cluster.cli import main

    file = tmp_path / "links.yaml"
    file.write_text(RACK.format(link="link_bandwidth: 2GB/s"))
    assert main(["validate", str(file)]) == 2
    reason = "found a bandwidth without a latency that load could raise; allowed: with `link_latency` only"
    assert capsys.readouterr().err.rstrip().endswith(f"link_bandwidth: {reason}")
