"""The audit under load, on a small machine: conservation each epoch, the matrix, what a forgotten check shows."""

from __future__ import annotations

import json

import pytest

from privmem.cluster.assembly import make_plan
from privmem.cluster.audit.under_load import LoadedAudit, LoadedCell, LoadedRun, audit_under_load
from privmem.cluster.cli import main
from privmem.cluster.cli.audit_load import print_under_load
from privmem.cluster.config import Config, load_config
from privmem.cluster.errors import InvariantError
from privmem.nodeagent.host import kmem
from privmem.nodeagent.host.outgoing import Outgoing
from privmem.scheduler.abi import Reason
from privmem.scheduler.isolation import select_designs
from privmem.scheduler.isolation.private_zonelist import PrivateZonelist
from privmem.scheduler.zonelist import AllocRequest

DESIGNS = [design.name for design in select_designs("all")]
MACHINE = """
schema: 1
name: small
design: private-zonelist
engine: {duration: 4ms, epoch: 500us, slice: 100us}
hosts:
  - name: h
    cpus: 2
    nodes:
      - {id: 0, memory: {class: dram, capacity: 1MiB}, cpus: [0]}
      - {id: 1, memory: {class: dram, capacity: 1MiB}, cpus: [1]}
      - {id: 2, memory: {class: gpu, capacity: 4MiB}, private: true, via: 0, hop: 30,
         features: [user_numa, user_write, migration, longterm_pin]}
      - {id: 3, memory: {class: nic, capacity: 512KiB}, private: true, features: [user_write], via: 0, hop: 20}
      - {id: 4, memory: {class: compressed-ram, capacity: 1MiB, perceived: 2MiB}, private: true, via: 0,
         hop: 40, features: [reclaim, demotion]}
    sysctl: {numa_balancing: 2, demotion_enabled: true, numa_balancing_scan_period_min: 1ms}
    processes:
      - name: web
        think: 500ns
        workload: {kind: uniform, size: 2MiB, write_share: 0.3, accesses: 1000000}
        content: {kind: generator, random_bytes: 500}
      - {name: train, cpu: 1, workload: {kind: gpu, node: 2, size: 128KiB, window: 64KiB, dma: 16KiB,
         launches: 9999, launch_accesses: 500}}
      - {name: send, cpu: 1, workload: {kind: messages, node: 3, size: 16KiB, messages: 99999, burst: 100,
         burst_every: 9999}}
"""


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(MACHINE)

    def config_of(design: str) -> Config:
        return load_config(path, design=design)

    return config_of


def one(config_of, design: str, only: str) -> LoadedAudit:
    (found,) = audit_under_load(config_of, [design], only)
    return found


@pytest.mark.parametrize("design", DESIGNS)
def test_every_page_is_accounted_for_and_the_run_itself_leaks_nothing(small, design, capsys):
    audit = one(small, design, "page fault")
    assert audit.epochs == 8
    assert audit.after == 2
    assert (audit.pgleak, audit.killed) == (0, 0)
    assert {(row.nid, row.uninvited, row.left) for row in audit.seen} == {(2, 0, 0), (3, 0, 0), (4, 0, 0)}
    invited = {nid: sum(row.invited for row in audit.seen if row.nid == nid) for nid in (2, 3, 4)}
    assert min(invited.values()) > 10
    (cell,) = audit.cells
    assert (cell.loaded.text(), cell.opened, cell.crowded) == ("0", False, [])
    print_under_load([audit])
    assert "1 of 1 cells leak as on the idle machine, 0 only under load" in capsys.readouterr().out


def test_a_leak_of_the_idle_machine_is_one_under_load(small):
    audit = one(small, "no-fallback", "alloc_pages_node(P), THISNODE")
    (cell,) = audit.cells
    assert cell.loaded.landed == cell.idle.landed == {"gpu": 8, "nic": 8, "compressed-ram": 8}
    assert (cell.more, cell.fewer, cell.opened) == ([], [], False)


def test_a_forgotten_check_shows_in_the_run_and_in_the_matrix(small, monkeypatch):
    """Ordinary faults that find no room go on to the private nodes: nobody asked for the reason of the request."""
    sound = PrivateZonelist.candidates

    def careless(self, topology, lists, request, mems_allowed):
        zones = sound(self, topology, lists, request, mems_allowed)
        return (*zones, 2) if request.reason is Reason.FAULT else zones

    monkeypatch.setattr(PrivateZonelist, "candidates", careless)
    audit = one(small, "private-zonelist", "page fault")
    leaked = [row for row in audit.seen if row.uninvited]
    assert {(row.nid, row.reason) for row in leaked} == {(2, "fault")}
    assert sum(row.uninvited for row in leaked) > 20
    assert audit.pgleak > 20
    assert audit.cells[0].loaded.landed["gpu"] > 20
    assert audit.cells[0].loaded.trip


@pytest.mark.parametrize(
    ("forgetful", "opens"),
    [
        (lambda memory: bool(memory.high_order.pins), True),
        (lambda memory: memory.nodes[0].free_pages < 128, False),
    ],
    ids=["while a device has pins", "while DRAM is short"],
)
def test_a_check_that_an_idle_machine_never_forgets(small, monkeypatch, forgetful, opens):
    """A slab page comes from a device's memory in a case that an idle machine does not know; what only takes full
    ordinary memory is told apart.
    """
    sound = kmem.kmalloc_node

    def careless(memory, nid, holder, this_node=False):
        if forgetful(memory):
            return kmem.take_page(
                memory, AllocRequest(2, None, Reason.OWNER, this_node=True, private=True), holder
            )
        return sound(memory, nid, holder, this_node)

    monkeypatch.setattr(kmem, "kmalloc_node", careless)
    audit = one(small, "private-zonelist", "kmalloc_node(P)")
    (cell,) = audit.cells
    assert (cell.idle.landed, cell.loaded.landed) == ({}, {"gpu": 12})
    assert (cell.opened, cell.more) == (opens, ["+gpu"])
    assert cell.full is not None
    assert bool(cell.full.leaks) != opens


def test_pages_that_get_lost_end_the_audit(small, monkeypatch):
    run = LoadedRun(make_plan(small("private-zonelist")))
    run.epoch()
    node = run.hosts[0].memory.nodes[0]
    node.buddy.alloc(0)
    with pytest.raises(InvariantError, match=r"allocated \+ .* free != 256 managed"):
        run.epoch()


def test_pages_that_a_device_forgets_or_keeps_end_the_audit(small, monkeypatch):
    run = LoadedRun(make_plan(small("private-zonelist")))
    while not run.hosts[0].memory.vmstat.count["pgpromote_fence"]:
        run.epoch()
    monkeypatch.setattr(Outgoing, "free", lambda self, device, dpa: None)
    with pytest.raises(InvariantError, match=r"device/h.n4 stores \d+ pages, hosts have \d+ there"):
        run.epoch()


def test_the_command_prints_both_and_its_status_says_whether_the_matrix_holds(
    small, tmp_path, capsys, monkeypatch
):
    command = [
        "audit",
        str(tmp_path / "small.yaml"),
        "--load",
        "--design",
        "private-zonelist",
        "-k",
        "kmalloc",
    ]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "kmalloc_node(P)  0" in text
    assert "1 of 1 cells leak as on the idle machine, 0 only under load" in text
    assert "epochs with all pages accounted for  8" in text
    monkeypatch.setattr(LoadedCell, "opened", True)
    assert main([*command, "--json"]) == 1
    (audit,) = json.loads(capsys.readouterr().out)
    assert (audit["design"], audit["epochs_checked"], len(audit["cells"])) == ("private-zonelist", 8, 1)
    assert main([*command[:-1], "nothing of the kind"]) == 2
