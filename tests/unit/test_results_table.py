"""The table that a run prints."""

from __future__ import annotations

from fake_results import summary_of

from privmem.cluster.results.table import format_table

ONE_HOST = """\
host h0
                          node 0           node 1           node 2
                            dram   compressed-ram slow-distributed
                                          private          private
MiB online                  8.00             8.00             8.00
MiB used                    4.00             6.00             7.00
MiB free                    4.00             2.00             1.00
numa_hit                      30                0                0
numa_miss                      0                0                0
numa_foreign                   0                0                0
interleave_hit                 0                0                0
local_node                    30                0                0
other_node                     0                0                0
accesses                 80.00 %          13.33 %           6.67 %

pages and extents                              h0
page faults                                    40
demoted                                        20
  of them to compressed RAM                    12
  of them to a pooled device                    3
promoted by hint faults                         0
promoted by writes to compressed RAM            3
promoted by the node's driver                   0
extents granted                                 2
extents refused                                 0
extents given back                              0

h0.n1 (compressed-ram): 10 pages stored in 0.0 of 8.0 MiB, 2.50 to 1
pool (slow-distributed): 10 pages stored in 0.0 of 8.0 MiB; granted: h0 2.00 MiB"""


def test_the_whole_text_of_one_host() -> None:
    assert format_table(summary_of(hosts=1)) == ONE_HOST


def test_all_hosts_are_added_up() -> None:
    lines = format_table(summary_of(hosts=2)).splitlines()
    assert "pages and extents                              h0          h1   all hosts" in lines
    assert "page faults                                    40          40          80" in lines
    assert lines[-1].endswith("granted: h0 2.00 MiB, h1 4.00 MiB")


def test_a_rack_of_many_hosts_and_nodes_stays_readable() -> None:
    summary = summary_of(hosts=12)
    nodes = summary["hosts"]["h0"]["nodes"]
    nodes |= dict.fromkeys(range(3, 9), nodes[0])
    lines = format_table(summary).splitlines()
    assert max(map(len, lines)) <= 100
    assert [line for line in lines if line.startswith("host ")] == [f"host h{n}" for n in range(8)]
    assert "and 4 more hosts, in summary.json" in lines
    assert sum("node 4" in line for line in lines) == 1
    assert sum("node 5" in line for line in lines) == 1
    assert lines[-1] == "  6.00 MiB, h3 8.00 MiB, ..."


def test_numbers_that_are_too_wide_are_not_cut() -> None:
    summary = summary_of(hosts=1)
    summary["hosts"]["h0"]["nodes"][0]["numa_hit"] = 10**20
    assert f" {10**20} " in format_table(summary)


def test_killed_processes_are_told() -> None:
    summary = summary_of(hosts=1)
    summary["hosts"]["h0"]["vmstat"]["oom_kill"] = 1
    assert "processes killed for want of memory             1" in format_table(summary).splitlines()


def test_an_interrupted_run_has_no_table() -> None:
    assert format_table({"hosts": {}, "devices": {}}) == ""


def test_a_host_that_did_nothing() -> None:
    summary = {"hosts": {"h0": {"vmstat": {}, "nodes": {}, "processes": {}}}, "devices": {}}
    assert format_table(summary).splitlines()[0] == "host h0"
