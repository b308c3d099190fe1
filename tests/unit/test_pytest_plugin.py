"""The pytest plugin: litmus files as tests, and the fixture for stories told in Python."""

import pytest

from privmem.cluster.errors import ConfigError
from privmem.cluster.litmus.bench import Bench
from privmem.nodeagent.host.process import Signalled
from privmem.scheduler.abi import Mpol

pytest_plugins = ["pytester"]

HOLDS = """
title: A bind places the page
steps:
  - A: mem = mmap 1 page
  - A: mbind mem bind P
    expect: {private-zonelist-per-node: EINVAL, else: ok}
"""
FAILS = """
title: A bind to a closed node is accepted
designs: [caps, gfp-private]
steps:
  - A: set_mempolicy bind Q
"""
PAGES = 64 * 4096


@pytest.fixture(scope="module", autouse=True)
def _everything_imported():
    """A session inside the session forgets the modules that it imported; numba does not survive that."""
    bench = Bench()
    for line in ("A: mem = mmap 2 pages", "A: mbind mem bind P", "A: touch mem"):
        bench.do(line)


@pytest.fixture
def folder(pytester):
    """A project with litmus files."""
    below = pytester.mkdir("litmus")
    (below / "holds.yaml").write_text(HOLDS)
    (below / "fails.yaml").write_text(FAILS)
    (below / "machines").mkdir()
    (below / "machines" / "mine.yaml").write_text("nodes: {D0: {cpus: [0]}}\n")
    return pytester


def test_files_below_a_folder_litmus_are_tests(folder):
    result = folder.runpytest_inprocess("-p", "no:cacheprovider", "litmus", "-rf")
    result.assert_outcomes(passed=5, failed=2)
    result.stdout.fnmatch_lines(
        [
            "A bind to a closed node is accepted ?caps?",
            "line 5: A: set_mempolicy bind Q: expected ok, got EINVAL",
            "FAILED litmus/fails.yaml::caps*",
        ]
    )


def test_designs_are_chosen(folder):
    result = folder.runpytest_inprocess(
        "-p", "no:cacheprovider", "litmus/holds.yaml", "--privmem-design", "caps,caps:a"
    )
    result.assert_outcomes(passed=2)
    result = folder.runpytest_inprocess("-p", "no:cacheprovider", "--privmem-design", "cups")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["*--privmem-design: there is no isolation design 'cups'*did you mean 'caps'?"]
    )


def test_other_yaml_files_are_left_alone(pytester):
    (pytester.path / "one.litmus.yaml").write_text(HOLDS)
    (pytester.path / "other.yaml").write_text(FAILS)
    pytester.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(passed=5)


def test_a_broken_file_says_what_is_wrong(pytester):
    (pytester.path / "bad.litmus.yaml").write_text("title: bad\nsteps:\n  - A: mbnd mem bind P\n")
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["*bad.litmus.yaml:3: A: mbnd mem bind P: found 'mbnd'*did you mean 'mbind'?"]
    )


def test_the_seeds_story_in_python(privmem_machine):
    machine = privmem_machine("standard", design="caps:b")
    a, b = machine.process("A"), machine.process("B", cpu=1)
    machine.do("A: read myfile")
    mem = b.mmap(PAGES, file=machine.file("myfile"))
    b.mbind(mem, PAGES, Mpol.BIND, [machine.node("P")])
    b.touch(mem, PAGES, write=False)
    assert machine.pages(b, mem, 64) == {"D0": 64}
    assert b.faults_since_mark() == (64, 0)
    assert a.resident_pages() == 0


def test_commands_and_subjects_in_python(privmem_machine):
    machine = privmem_machine(
        {"nodes": {"D0": {"memory": "64 pages", "cpus": [0]}, "P": {"private": ["user_numa"]}}}
    )
    machine.do("A: mem = mmap 8 pages")
    with pytest.raises(OSError, match="EINVAL"):
        machine.do("A: mbind mem bind P strict static relative")
    with pytest.raises(Signalled):
        machine.do("A: touch mem[0:9]")
    assert machine.look("pages of mem") == {"D0": 8}
    with pytest.raises(ConfigError, match="did you mean 'mem'"):
        machine.look("pages of men")
    with pytest.raises(ConfigError, match="did you mean 'touch'"):
        machine.do("A: tuch mem")


@pytest.mark.parametrize("design", ["all", "caps,caps:a", "cups", ""])
def test_a_machine_has_one_design(privmem_machine, design):
    with pytest.raises(ConfigError, match="allowed: the name of one design"):
        privmem_machine("standard", design=design)


def test_a_machine_that_makes_no_sense(privmem_machine):
    with pytest.raises(ConfigError, match=r"machine: found 'standrad'; allowed: .*standard"):
        privmem_machine("standrad")
    with pytest.raises(ConfigError, match="machine:1: machine: found 'node'; allowed: nodes"):
        privmem_machine({"node": {}})
