"""Litmus files: what is understood, what is refused and how, and what the words do."""

from pathlib import Path

import pytest

from privmem.cluster.cli import main
from privmem.cluster.errors import ConfigError
from privmem.cluster.litmus import expectations, steps
from privmem.cluster.litmus.expectations import agrees
from privmem.cluster.litmus.grammar import Misread, match, pattern
from privmem.cluster.litmus.report import run_all
from privmem.cluster.litmus.runner import run_script
from privmem.cluster.litmus.script import find_scripts, parse_script
from privmem.cluster.litmus.values import TYPES, Names

ROOT = Path(__file__).parents[2]
NAMES = Names({"D0": 0, "P": 2}, files={"f"}, processes={"A"}, ranges={"mem"})

MINIMAL = """
title: t
steps:
"""


def outcome(text, design="private-zonelist"):
    """Status and reasons of a test made of these steps."""
    result = run_script(parse_script(MINIMAL + text, "t.yaml"), design)
    return result.status, result.reasons


def refusal(text):
    with pytest.raises(ConfigError) as caught:
        parse_script(text, "t.yaml")
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("line", "words", "values"),
    [
        ("touch RANGE", "touch mem", None),
        ("mbind RANGE MODE [NODES] [strict|move]...", "mbind mem bind D0,P move", None),
        ("alloc NODE [thisnode|private]...", "alloc P private thisnode", {"alloc": True, "node": 2, "private": True, "thisnode": True}),  # noqa: E501
        ("migrate FROM:NODES TO:NODES", "migrate D0 -", {"migrate": True, "from": [0], "to": []}),
        ("migrate FROM:NODES", "migrate 0-1,P", {"migrate": True, "from": [0, 1, 2]}),
        ("set_ops [calls CALLS]", "set_ops calls migrate_to,folio_migrate", {"set_ops": True, "calls": ["migrate_to", "folio_migrate"]}),  # noqa: E501
        ("set_ops [calls CALLS]", "set_ops calls migrate_to folio_migrate", {"set_ops": True, "calls": ["migrate_to", "folio_migrate"]}),  # noqa: E501
        ("mmap SIZE [shared] [at ADDR:NUMBER]", "mmap 3 pages at 0x1000", {"mmap": True, "size": 12288, "at": True, "addr": 4096}),  # noqa: E501
        ("demotion on|off", "demotion off", {"demotion": True, "off": True}),
        ("hugepages [NODE] NUMBER", "hugepages 2", {"hugepages": True, "number": 2}),
    ],
)  # fmt: skip
def test_patterns(line, words, values):
    got = match(pattern(line), words.split(), TYPES, NAMES)
    if values is not None:
        assert got == values


@pytest.mark.parametrize(
    ("line", "words", "message"),
    [
        ("touch RANGE", "touch men", "found 'men'; allowed: a mapping or file, such as mem, mem[0:8], A.mem (f, mem); did you mean 'mem'?"),  # noqa: E501
        ("touch RANGE", "touch", "found nothing; allowed: a mapping, or pages of one: mem, mem[3], mem[0:8], A.mem; or of a file"),  # noqa: E501
        ("set MODE [NODES]", "set bind D1", "found 'D1'; allowed: nodes with commas between them, - for none (D0, P)"),  # noqa: E501
        ("exit", "exit now", "found 'now' at the end; allowed: exit"),
        ("demotion on|off", "demotion maybe", "found 'maybe'; allowed: on or off"),
        ("set_ops [calls CALLS]", "set_ops calls migrate", "found 'migrate'; allowed: callbacks (free_folio, folio_split, folio_migrate, handle_fault, migrate_to, memory_failure, reclaim_policy); did you mean 'migrate_to'?"),  # noqa: E501
        ("mmap SIZE", "mmap 64 pags", "found '64'; allowed: a size such as 64 pages, 2 huge pages or 4MiB"),
    ],
)  # fmt: skip
def test_what_patterns_say(line, words, message):
    with pytest.raises(Misread) as caught:
        match(pattern(line), words.split(), TYPES, NAMES)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("got", "wanted", "holds"),
    [
        (3, 3, True), (3, 4, False), (3, "> 2", True), (3, ">= 4", False), (3, "!= 3", False),
        ({"P": 4}, {"P": 4}, True), ({"P": 4, "D0": 1}, {"P": 4}, False), ({"P": 4}, {"P": 4, "D0": 0}, True),
        ({"P": 4}, {"P": "> 0"}, True), ([], "none", True), (["D0"], "D0", True), (["D0", "P"], ("D0", "P"), True),
        (["D0"], ("D0", "P"), False), (None, "none", True), ("bind P", "bind P", True), ("abc", "a...c", True),
        ("abd", "a...c", False), (3, {"any of": (2, 3)}, True), (4, {"any of": (2, 3)}, False), (0, 0, True),
        (["D0", "P"], "D0,P", True), (["D0", "P"], "D0, P", True), (["P", "D0"], "D0,P", False),
        ("D0,P", ("D0", "P"), True), (["P", "Q", "D0"], "P,...", True), (["P", "D0"], "...Q...", False),
        (["D0"], "D0,P", False),
    ],
)  # fmt: skip
def test_agreement(got, wanted, holds):
    assert agrees(got, wanted) is holds


def test_a_story_that_holds():
    text = """
  - A: mem = mmap 8 pages
  - A: mbind mem bind P
  - A: touch mem
  - expect: {pages of mem: {P: 8}, free pages of P: "< 256", soft faults of A: 8}
  - A: mbind mem bind Q
    expect: EINVAL
"""
    assert outcome(text) == ("passed", [])


def test_a_failure_names_line_expectation_and_what_came():
    text = """
  - A: mem = mmap 8 pages
  - A: touch mem
  - expect:
      pages of mem: {P: 8}
      no page of mem on: [P, D0]
  - A: munmap mem
    expect: EINVAL
  - A: mbind mem bind Q
"""
    assert outcome(text) == (
        "failed",
        [
            "line 7: pages of mem: expected {P: 8}, got {D0: 8}",
            "line 7: no page of mem on: 8 on D0",
            "line 10: A: munmap mem: expected EINVAL, got ok",
            "line 12: A: mbind mem bind Q: expected ok, got EINVAL",
        ],
    )


def test_expectations_by_design():
    text = """
  - A: set_mempolicy interleave D0,P
    expect: {caps: EINVAL, caps:a: ok, private-zonelist:F2: ok, gfp-private: ok}
  - A: set_mempolicy bind P
    expect: {private-zonelist-per-node: EINVAL, else: ok}
"""
    script = parse_script(MINIMAL + text, "t.yaml")
    names = ["gfp-private", "caps", "caps:a", "private-zonelist:F2", "private-zonelist-per-node"]
    got = [(r.design, r.status, r.reasons) for r in run_all([script], names)]
    assert got == [(name, "passed", []) for name in names]


def test_a_file_is_only_run_under_its_designs():
    script = parse_script("title: t\ndesigns: [caps]\nsteps: [{A: exit}]\n", "t.yaml")
    results = run_all([script], ["caps", "caps:b", "gfp-private"])
    assert [r.status for r in results] == ["passed", "not run", "not run"]


def test_a_claim_that_the_design_refuses_says_what_is_missing():
    machine = "machine: {nodes: {D: {cpus: [0]}, P: {private: [user_numa]}}}"
    status, reasons = outcome(f"  - kernel: mark\n{machine}\n", "gfp-private")
    assert status == "error"
    assert reasons[0].endswith(
        "refuses a claim with user_numa, migration; a node that users may bind to needs user_write"
    )


def test_a_step_that_makes_no_sense_where_it_stands():
    status, reasons = outcome("\n  - A: mem = mmap 1 page\n  - B: touch mem\n")
    assert (status, reasons) == ("error", ["line 6: B: touch mem: B has no mapping mem yet"])


def test_every_mistake_is_told_with_its_line():
    text = """title: bad
steps:
  - A: mem = mmap 64 pags
  - A: mbnd mem bind P
  - A: mbind mem bind R
    expect: EINVLA
  - A: mem = mmap 64 pages
  - A: mbind mem bind R
    expect: {cups: EINVAL}
  - expect: {pages of mm: {D0: 64}, vmstat pgfalt: 3}
  - expect: {pages of mem: {D7: 64}}
  - A: 3
    B: 4
  - kernel: sleep
  - {}
"""
    lines = refusal(text)
    assert [line.split(":")[1] for line in lines] == [
        "3", "4", "5", "6", "8", "9", "10", "10", "11", "12", "14", "15",
    ]  # fmt: skip
    assert lines[1] == (
        "t.yaml:4: A: mbnd mem bind P: found 'mbnd'; allowed: "
        + ", ".join(sorted({" ".join("|".join(w) for w in v.pattern.lead) for v in steps.TABLES["process"]}))
        + "; did you mean 'mbind'?"
    )
    assert lines[3] == "t.yaml:6: expect: found 'EINVLA'; allowed: an errno name; did you mean 'EINVAL'?"
    assert "did you mean 'caps'?" in lines[5]
    assert "did you mean 'pgfault'?" in lines[7]


@pytest.mark.parametrize("step", ["{A: fork, expects: SIGKILL}", "expct: {state of P: online}"])
def test_a_misspelt_expect_is_no_actor(step):
    assert refusal(f"title: t\nsteps:\n  - {step}\n")[0].endswith("did you mean 'expect'?")


def test_what_a_machine_may_not_be():
    lines = refusal(
        """title: bad
machine:
  nodes:
    D0: {memory: 4MiB, cpus: [0], clas: gpu}
    P: {memory: 1TiB, private: [user_nmua], zone: low}
  files: {f: 3}
  cgroups: {a: b}
  sysctl: {demotion: 2, swp: 1}
steps: [{A: exit}]
"""
    )
    assert [line.split(": found")[0] for line in lines] == [
        "t.yaml:4: machine.nodes.D0",
        "t.yaml:5: machine.nodes.P.private",
        "t.yaml:5: machine.nodes.P.memory",
        "t.yaml:5: machine.nodes.P.zone",
        "t.yaml:6: machine.files.f",
        "t.yaml:7: machine.cgroups.a",
        "t.yaml:8: machine.sysctl",
        "t.yaml:8: machine.sysctl.demotion",
    ]


def test_a_file_cannot_name_what_is_not_data():
    assert "allowed: no tags" in refusal("title: !!python/object:os.system t\n")[0]
    assert refusal("title: t\nmachine: nowhere\nsteps: []\n")[0].startswith(
        "t.yaml:2: machine: found 'nowhere'"
    )


def test_the_command(tmp_path, capsys):
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("title: good\nsteps:\n  - A: exit\n")
    bad.write_text("title: bad\nsteps:\n  - A: set_mempolicy bind Q\n    expect: ok\n")
    assert main(["litmus", str(good), "--design", "caps"]) == 0
    assert capsys.readouterr().out.endswith("1 files under 1 designs: 1 of 1 held\n")
    assert main(["litmus", str(tmp_path), "--design", "caps"]) == 1
    out = capsys.readouterr().out
    assert "FAIL" in out
    assert "line 3: A: set_mempolicy bind Q: expected ok, got EINVAL" in out
    assert main(["litmus", str(tmp_path), "--design", "nothing"]) == 2
    assert "--design: there is no isolation design 'nothing'" in capsys.readouterr().err
    assert main(["litmus", str(tmp_path / "absent")]) == 2
    assert main(["litmus", str(tmp_path), "-k", "zzz"]) == 2


def test_the_documentation_has_every_word():
    text = (ROOT / "docs/litmus.md").read_text().replace("\\|", "|")
    words = [v.pattern.text for table in steps.TABLES.values() for v in table]
    words += [s.pattern.text for s in expectations.SUBJECTS]
    assert [w for w in words if f"`{w}`" not in text] == []


def test_the_library_is_found():
    files = find_scripts([ROOT / "configs/litmus"])
    assert files == sorted(files)
    assert not [f for f in files if "machines" in f.parts]


def test_the_outcome_of_a_step_may_be_a_node_with_a_long_name():
    text = """
title: t
machine: four_private
steps:
  - driver: alloc CRAM 4
    expect: CRAM
"""
    assert run_script(parse_script(text, "t.yaml"), "caps").status == "passed"
    assert "found 'GRAM'" in refusal(text.replace("expect: CRAM", "expect: GRAM"))[0]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("A: keep mem", "allowed: "),
        ("A: kswapd", "; kernel can do that"),
        (
            "driver: keep pages of P",
            "found 'keep pages'; allowed: keep|move residents of NODE; keep|give",
        ),
    ],
)
def test_commands_that_nobody_or_somebody_else_has(command, message):
    assert message in refusal(f"title: t\nsteps:\n  - {command}\n")[0]


def test_paths_may_have_names():
    text = """
  - A: mem = mmap 4 pages
  - A: touch mem
  - expect:
      text of /proc/A/status: "...VmRSS: 16 kB..."
      text of /sys/devices/system/node/nodeP/meminfo: "Node 2 MemTotal: 1024 kB..."
      text of /proc/nobody/status: ENOENT
      pages of mem[2:2]: none
      private nodes: [P, Q]
"""
    assert outcome(text) == ("passed", [])


def test_registered_claims_are_what_everybody_sees():
    text = """
  - driver: register P for np1 with RECLAIM,mempolicy
  - driver: register P for np2 with reclaim
    expect: EBUSY
  - driver: register Q for np2 with fallback,reclaim
    expect: EINVAL
  - admin: plug P
  - expect: {owner of P: np1, registered owner of P: np1, features of P: [reclaim, user_numa]}
  - driver: unregister P
    expect: EBUSY
  - driver: dev = dax_test P
  - driver: unbind dev
  - expect: {owner of P: none, private nodes: none}
"""
    script = parse_script(f"title: t\ndesigns: [caps]\nmachine: unplugged\nsteps:{text}", "t.yaml")
    assert run_script(script, "caps").status == "passed"


def test_frames_of_ranges():
    text = """
  - B: f = mmap 4 pages shared
  - B: touch f
  - B: C = fork
  - C: load f
  - B: pin f[0:2] short
  - expect: {pages shared by B.f and C.f: 4, "pinned pages of B.f": 2}
  - kernel: mark
  - B: unpin f
  - B: move_pages f[1:3] D1 all
  - expect: {moved pages of B.f: 2, "moved pages of B.f[2:4]": 1, pinned pages of B.f: 0}
"""
    assert outcome(text) == ("passed", [])


def test_groups_by_path_and_processes_by_name():
    text = """
  - admin: cgroup sub in tenant
  - admin: write /sys/fs/cgroup/tenant/sub/cpuset.mems 1
  - A: mem = mmap 4 pages
  - admin: write /sys/fs/cgroup/sub/cgroup.procs A
  - admin: write /sys/fs/cgroup/sub/cgroup.procs 999
    expect: ESRCH
  - expect:
      cgroup of A: sub
      processes in sub: A
      text of /sys/fs/cgroup/tenant/sub/cpuset.mems.effective: "1"
      text of /sys/fs/cgroup/sub/tenant/cpuset.mems: ENOENT
"""
    assert outcome(text) == ("passed", [])


def test_the_test_devices_mapping_is_bound_to_a_node():
    text = """
  - driver: dev = dax_test P
  - driver: get dev bind_node
    expect: P
  - driver: set dev bind_node none
  - A: mem = mmap device dev 8 pages
    expect: ENXIO
  - driver: set dev contig range 0 4
    expect: ENXIO
  - driver: set dev bind_node Q
  - A: mem = mmap device dev 8 pages
  - A: touch mem
  - expect: {pages of mem: {Q: 8}}
  - admin: unplug Q
    expect: {any of: [ok, EBUSY]}
  - driver: set dev bind_node 9
    expect: EINVAL
"""
    assert outcome(text) == ("passed", [])


def test_words_that_people_add():
    text = """
  - A: mem = mmap 4 pages
  - admin: move A to tenant
  - A: touch mem
  - A: move_pages mem to D1
    expect: D1*4
  - A: migrate_pages D1 to D0
    expect: 0
  - A: pin mem longterm
    expect: 4
  - kernel: alloc D1 3
    expect: D1
  - kernel: alloc_pages_node P
    expect: D0
  - kernel: kmalloc_node D1
    expect: D1
  - A: mbind mem MPOL_BIND D0,D1
  - A: madvise mem MADV_COLD
  - A: two = mmap 4 pages
  - A: touch two
  - A: move_pages two D1,D0
    expect: D1 D0 D1 D0
  - A: run on cpu 7
    expect: EINVAL
  - expect: {leaks: none, meminfo HugePages_Total of P: 0, nofallback list of D0: D0}
  - expect: {cgroup of A: tenant, pages of mem: {D0: 4}}
"""
    assert outcome(text) == ("passed", [])


@pytest.mark.parametrize(
    ("subject", "message"),
    [
        ("node state has_memry", "did you mean 'has_memory'?"),
        ("pages in P", "found 'pages in'; allowed: pages of RANGE; pages shared by"),
        ("pages of nothing", "allowed: a mapping or file"),
        ("pages shared by myfile", "found nothing; allowed: and"),
    ],
)
def test_subjects_that_do_not_exist(subject, message):
    assert message in refusal(f"title: t\nsteps:\n  - expect: {{{subject}: 3}}\n")[0]
