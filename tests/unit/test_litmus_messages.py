"""What litmus files, the command and the Python fixture say to somebody who writes a first test."""

import pytest

from privmem.cluster.cli import main
from privmem.cluster.errors import ConfigError
from privmem.cluster.litmus.bench import Bench
from privmem.cluster.litmus.script import parse_script

HEAD = """title: t
steps:
  - A: mem = mmap 8 pages
"""


def refusal(text):
    with pytest.raises(ConfigError) as caught:
        parse_script(text, "t.yaml")
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("pages of mem: 8", "found 8; allowed: a mapping of nodes to numbers, such as {D0: 64}, or none"),
        ("pages of mem: {D0: few}", "found a mapping; allowed: a mapping of nodes to numbers, such as {D0: 64}, or none"),  # noqa: E501
        ("soft faults of A: many", "found 'many'; allowed: a number, or a comparison in quotes such as \"> 0\""),
        ('soft faults of A: "> x"', "found '> x'; allowed: a number, or a comparison in quotes such as \"> 0\""),
        ("used pages of P: {P: 3}", "found a mapping; allowed: a number, or a comparison in quotes such as \"> 0\""),  # noqa: E501
        ("used pages of P: {caps: yes}", "found 'yes'; allowed: a number, or a comparison in quotes such as \"> 0\""),  # noqa: E501
        ("free swap: {any of: [0, none]}", "found 'none'; allowed: a number, or a comparison in quotes such as \"> 0\""),  # noqa: E501
    ],
)  # fmt: skip
def test_values_that_a_subject_never_has(line, message):
    subject = line.split(":")[0]
    assert refusal(f"{HEAD}  - expect:\n      {line}\n") == [f"t.yaml:5: expect: {subject}: {message}"]


def test_values_that_a_subject_may_have():
    parse_script(
        HEAD
        + """  - expect:
      pages of mem: {caps: none, gfp-private: {D0: ">= 8", D1: {any of: [0, 3]}}, else: {any of: [{D0: 8}, none]}}
      leaks: 0
      free swap: {any of: [0, "> 3"]}
      soft faults of A: "8"
""",
        "t.yaml",
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"{HEAD}  - expect:\n    leaks: 0\n", "t.yaml:4: expect: found nothing; allowed: what must hold, indented deeper than `expect:`"),  # noqa: E501
        (f"{HEAD}  - B = fork: A\n", "t.yaml:4: B = fork: A: found the actor 'B = fork'; allowed: a process, kernel, admin, driver; a name for what a step gives stands behind the actor: `A: B = fork`"),  # noqa: E501
        (f"{HEAD}  - A: unpin mem raed\n", "t.yaml:4: A: unpin mem raed: found 'raed' at the end; allowed: unpin RANGE"),  # noqa: E501
        (f"{HEAD}  - A: mbind mem bind P mvoe\n", "t.yaml:4: A: mbind mem bind P mvoe: found 'mvoe' at the end; allowed: mbind RANGE MODE [NODES] [static|relative|strict|move|move_all]...; did you mean 'move'?"),  # noqa: E501
        (f"{HEAD}designs: {{caps: yes}}\n", "t.yaml:4: designs: found a mapping; allowed: all, or a list of designs"),  # noqa: E501
        ("nodes: {D0: {cpus: [0]}}\n", "t.yaml:1: found a machine, which a litmus test names (`machine: NAME`); allowed: a litmus test: title, machine, steps"),  # noqa: E501
        ("schema: 1\nhosts: []\n", "t.yaml:1: found a configuration of a run, which `privmem run` takes; allowed: a litmus test: title, machine, steps"),  # noqa: E501
    ],
)  # fmt: skip
def test_mistakes_of_form(text, line):
    assert refusal(text) == [line]


def test_text_that_is_not_yaml_is_told_what_may_be_behind_it():
    indented = refusal(f"{HEAD}    - A: touch mem\n")[0]
    assert indented.startswith("t.yaml:4: found text that is not YAML: ")
    assert "; steps begin with `- ` below each other" in indented
    assert refusal(f"{HEAD}\t- A: touch mem\n")[0].endswith("; indent with blanks, not with tabs")


def test_who_can_do_what_the_actor_cannot():
    assert refusal(f"{HEAD}  - A: demotion on\n")[0].endswith("; admin can do that")
    assert refusal(f"{HEAD}  - kernel: touch mem\n")[0].endswith("; a process can do that")


def test_a_distance_is_one_that_a_machine_can_have():
    lines = refusal(
        """title: t
machine:
  nodes:
    D0: {memory: 4MiB, cpus: [0]}
    D1: {memory: 4MiB, distance: 5}
    D2: {memory: 4MiB, distance: {D0: 255, D1: 20}}
steps: [{A: exit}]
"""
    )
    assert lines == [
        "t.yaml:5: machine.nodes.D1.distance: found 5; allowed: a number from 10 to 254, or one for each node",
        "t.yaml:6: machine.nodes.D2.distance.D0: found 255; allowed: a number from 10 to 254, or one for each node",
    ]


def test_failures_that_are_alike_are_told_once_and_absent_pages_by_name(tmp_path, capsys):
    path = tmp_path / "t.yaml"
    path.write_text(
        HEAD
        + """  - A: mbind mem bind D1
  - A: load mem
  - expect: {pages of mem: {D1: 8}}
  - A: touch mem
  - A: munmap mem[0:2]
  - expect: {pages of mem: {D1: 8}}
"""
    )
    assert main(["litmus", str(path), "--design", "caps,no-fallback"]) == 1
    out = capsys.readouterr().out
    assert out.count("\nFAIL ") == 1
    assert f"FAIL {path} [caps, no-fallback] t\n" in out or f"FAIL {path} [no-fallback, caps] t\n" in out
    assert (
        "    | A has no page at mem[0]: it has not touched it, or only read it (the zero page is on no node)\n"
        in out
    )
    assert "    | A has no page at mem[0]\n" in out
    assert " \n" not in out


@pytest.mark.parametrize("verb", ["run", "topo"])
def test_a_file_of_another_kind_is_called_by_its_name(verb, tmp_path, capsys):
    path = tmp_path / "t.yaml"
    path.write_text(HEAD)
    assert main([verb, str(path)]) == 2
    assert (
        "found a litmus test, which `privmem litmus` runs; allowed: a configuration of a run"
        in capsys.readouterr().err
    )
    path.write_text("nodes: {D0: {cpus: [0]}}\n")
    assert main([verb, str(path)]) == 2
    assert (
        f"{path}:1: found a machine, which litmus tests name and `privmem audit` takes"
        in capsys.readouterr().err
    )


def test_the_fixture_names_what_is_near():
    with pytest.raises(ConfigError, match="did you mean 'caps'"):
        Bench("standard", "cap")
    with pytest.raises(ConfigError, match="did you mean 'standard'"):
        Bench("standrad")
    with pytest.raises(ConfigError, match="found the node 'D'; allowed: D0, D1, P, Q"):
        Bench("standard").node("D")
