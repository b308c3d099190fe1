"""The story of a page: what was asked for, by which rule it was answered, and where the page went."""

import pytest

from privmem.cluster.cli import main
from privmem.cluster.litmus.report import run_all
from privmem.cluster.litmus.script import parse_script
from privmem.nodeagent.host.process import Signalled
from privmem.nodeagent.host.story import Story
from privmem.nodeagent.host.story_events import REFUSED, Event

HEAD = "title: t\nsteps:\n"


def told(capsys, tmp_path, text, page, design="private-zonelist"):
    """What `privmem why` prints about a page, without the first line."""
    file = tmp_path / "t.yaml"
    file.write_text(HEAD + text)
    assert main(["why", str(file), page, "--design", design]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == f"t [{design}]: passed"
    return lines


def test_a_soft_fault_names_who_brought_the_page_and_whose_policy_counts(capsys, tmp_path):
    text = """
  - A: read myfile
  - B: mem = mmap file myfile
  - B: mbind mem bind P
  - B: load mem
"""
    expected = [
        "line 4, A: read myfile",
        "  allocated filling the page cache near D0; fallback zonelist of D0 (nodes D0,D1) -> D0 (1018 pages left, "
        "above its high watermark 67)",
        "  cached    page 3 of myfile, placed by the task's policy",
        "line 6, B: mbind mem bind P",
        "  called    ok",
        "line 7, B: load mem",
        "  mapped    soft fault, a read by B of a page that is not mapped: page 3 of myfile was in the cache "
        "already, and is mapped where it is, on D0; the mapping's policy (bind P) places no page",
    ]  # fmt: skip
    assert told(capsys, tmp_path, text, "mem[3]") == expected
    of_the_file = [line for line in expected if "called" not in line and "mbind" not in line]
    assert told(capsys, tmp_path, text, "myfile[3]")[:4] == [*of_the_file[:3], "line 7, B: load mem"]


def test_a_page_is_followed_over_its_moves_to_its_end(capsys, tmp_path):
    text = """
  - A: mem = mmap 2 pages
  - A: touch mem
  - A: mbind mem bind P move
  - A: migrate_pages P D1
  - A: munmap mem
"""
    lines = told(capsys, tmp_path, text, "mem[1]", "caps")
    assert [line[:12].strip() for line in lines if line.startswith("  ")] == [
        "allocated", "mapped",
        "allocated", "moved",
        "allocated", "moved",
        "unmapped", "freed",
    ]  # fmt: skip
    assert [line.strip() for line in lines if "moved" in line] == [
        "moved     from D0 to P: a move that a user asked for",
        "moved     from P to D1: a move that a user asked for",
    ]
    assert "private zonelist of D0 (nodes D0,D1,P,Q), confined by the nodemask -> P" in lines[4]
    assert lines[-1].strip() == "freed     on D1"


def test_who_was_killed_and_why_just_him(capsys, tmp_path):
    text = """
  - A: mem = mmap 700 pages
  - A: mbind mem bind D1
  - A: touch mem
  - B: other = mmap 700 pages
  - B: mbind other bind D1
  - B: touch other
"""
    lines = told(capsys, tmp_path, text, "mem[1]", "caps")
    assert [line.strip() for line in lines[-4:]] == [
        "line 9, B: touch other",
        "killed    A, by the OOM killer: a policy confines the request to D1, and this one has most points "
        "(700 pages)",
        "unmapped  by A",
        "freed     on D1",
    ]


def test_a_store_behind_the_fence_is_named(privmem_machine):
    machine = privmem_machine(
        {"nodes": {"D0": {"cpus": [0]}, "P": {"private": ["user_numa"]}}}, design="caps"
    )
    story = machine.kernel.memory.story = Story(machine.kernel.memory)
    for step in ("A: mem = mmap 1 pages", "A: mbind mem bind P", "A: touch mem"):
        machine.do(step)
    moves = [event.text for event in story.events if event.what == "moved"]
    assert moves == [
        "from node 1 to node 0: a store to a page of a write-fenced node (one without user_write)"
    ]


@pytest.mark.parametrize(
    ("step", "design", "line"),
    [
        ("set_mempolicy bind Q", "caps", "EINVAL: caps: private Q not opted in to policies"),
        ("set_mempolicy bind Q", "gfp-private", "EINVAL: gfp-private: Q may not be named by a policy"),
        ("mbind mem interleave P", "caps", "EINVAL: caps: P may be named by a bind only"),
        ("mbind mem bind P,D0", "no-fallback", "EINVAL: no-fallback: private P may be bound to alone only"),
        ("mbind mem bind -", "caps", "EINVAL: the mode bind does not go with no node and these flags"),
        ("mbind mem bind D0 static relative", "caps", "EINVAL: the mode is unknown, or its flags exclude each other"),  # noqa: E501
        ("move_pages mem Q", "caps", "ENODEV: caps: users may not move pages to Q"),
    ],
)  # fmt: skip
def test_a_refusal_says_which_rule_refused(capsys, tmp_path, step, design, line):
    text = f"""
  - A: mem = mmap 1 page
  - A: {step}
    expect: {line[:6].removesuffix(":")}
"""
    lines = told(capsys, tmp_path, text, "mem", design)
    assert lines[-2:] == [f"line 5, A: {step}", f"  refused   {line}"]


def test_a_cpuset_is_a_reason(capsys, tmp_path):
    text = """
  - admin: mems tenant D0
  - A: join tenant
  - A: mem = mmap 1 page
  - A: mbind mem bind D1
    expect: EINVAL
  - A: move_pages mem D1
    expect: EACCES
"""
    assert [line for line in told(capsys, tmp_path, text, "mem") if "refused" in line] == [
        "  refused   EINVAL: D1 outside of the cpuset's mems D0",
        "  refused   EACCES: D1 outside of the cpuset's mems D0",
    ]


def test_what_stays_where_it_is_says_why(capsys, tmp_path):
    text = """
  - A: mem = mmap 1 page
  - A: mbind mem bind P
  - A: touch mem
  - B = fork
"""
    text = (
        text.replace("- B = fork", "- A: B = fork")
        + """
  - B: move_pages mem D1
    expect: EACCES
  - A: exit
  - B: pin mem
    expect: {any of: [1, EFAULT, ENOMEM]}
  - admin: offline P
    expect: {any of: [ok, EBUSY]}
"""
    )
    lines = told(capsys, tmp_path, text, "B.mem", "caps")
    stays = [line.strip() for line in lines if "stayed" in line]
    assert stays[0] == "stayed    on P: EACCES: mapped more than once, and not MPOL_MF_MOVE_ALL"


def test_demotion_names_the_part_of_the_kernel_and_its_target(capsys, tmp_path):
    file = tmp_path / "t.yaml"
    file.write_text(
        """title: t
machine:
  nodes:
    D0: {memory: 512 pages, cpus: [0]}
    R: {memory: 512 pages, private: [reclaim, demotion], class: slow-distributed}
  sysctl: {demotion: true}
steps:
  - A: mem = mmap 500 pages
  - A: touch mem
  - kernel: kswapd D0
"""
    )
    assert main(["why", str(file), "mem"]) == 0
    out = capsys.readouterr().out
    assert "reclaim of D0\n  allocated demotion near R, with THISNODE; private zonelist of R" in out
    assert "  moved     from D0 to R: demotion" in out


def test_hopeless_requests_are_told(privmem_machine):
    machine = privmem_machine(design="caps")
    story = machine.kernel.memory.story = Story(machine.kernel.memory)
    for line in ("A: mem = mmap 300 pages", "A: mbind mem bind P"):
        machine.do(line)
    with pytest.raises(Signalled):
        machine.do("A: touch mem")
    first, second = [event for event in story.events if event.what == REFUSED]
    assert first.place == second.place
    assert first.text.startswith(
        "a fault under a policy near node 0, only of node 2, asking for private memory; private"
    )
    assert "confined by the nodemask: node 2 has" in first.text
    assert second.text == "a write by process 1 of a page that is not mapped: errno 12"


def test_a_failure_comes_with_the_story_of_the_first_page_that_is_wrong():
    text = (
        HEAD
        + """
  - A: mem = mmap 4 pages
  - A: mbind mem[0:2] bind P
  - A: touch mem
  - expect: {pages of mem: {P: 4}}
  - A: set_mempolicy bind Q
"""
    )
    (result,) = run_all([parse_script(text, "t.yaml")], ["caps"])
    assert result.reasons == [
        "line 7: pages of mem: expected {P: 4}, got {D0: 2, P: 2}",
        "line 8: A: set_mempolicy bind Q: expected ok, got EINVAL",
    ]
    first, second = result.stories
    assert first[0] == "line 6, A: touch mem"
    assert "a page of its own, on D0" in first[2]
    assert second == ["refused   EINVAL: caps: private Q not opted in to policies"]
    assert result.plain()["stories"] == result.stories


@pytest.mark.parametrize("page", ["nothing", "mem[9", "B.mem"])
def test_pages_that_are_not_there(capsys, tmp_path, page):
    file = tmp_path / "t.yaml"
    file.write_text(HEAD + "  - A: mem = mmap 1 page\n")
    assert main(["why", str(file), page]) == 2
    assert capsys.readouterr().err.startswith(f"{page}: found")


def test_a_page_to_which_nothing_happened(capsys, tmp_path):
    text = "  - A: mem = mmap 1 page\n"
    assert told(capsys, tmp_path, text, "mem") == ["nothing ever happened to this page"]


def test_events_are_plain_values_and_bounded(privmem_machine):
    machine = privmem_machine()
    story = machine.kernel.memory.story = Story(machine.kernel.memory, events_max=10)
    machine.do("A: mem = mmap 64 pages")
    machine.do("A: touch mem")
    assert story.number == 128
    assert 5 <= len(story.events) <= 10
    assert story.events[-1].number == 128
    assert [Event.from_plain(event.plain()) for event in story.events] == story.events
