"""YAML text: what it means, where it stands, and what is refused before anything is built."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privmem.cluster.config.tree import DEPTH_MAX, NODES_MAX, Problem, Tree, Unreadable, found, read_yaml


def plain(text: str) -> Any:
    root, problems = read_yaml(text)
    assert problems == []
    return None if root is None else root.plain()


def refusal(text: str) -> Problem:
    with pytest.raises(Unreadable) as caught:
        read_yaml(text)
    return caught.value.problem


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12),
        ("-3", -3),
        ("1_000_000", 1_000_000),
        ("0777", 777),
        ("0x1F", 31),
        ("1.5", 1.5),
        ("1e6", 1e6),
        ("true", True),
        ("~", None),
        ("", None),
        ("on", "on"),
        ("12:30", "12:30"),
        ("2001-01-01", "2001-01-01"),
        ("4GiB", "4GiB"),
        ("'12'", "12"),
        ('"a\\tb"', "a\tb"),
        ("1" * 5000, "1" * 5000),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    read = plain(f"[{text}, 0]")[0] if text else plain("k:")["k"]
    assert (type(read), read) == (type(value), value)


def test_lines_of_values_and_keys() -> None:
    root, _ = read_yaml("a: 1\nb:\n  - 2\n  - c:\n      3\n")
    assert root is not None
    places: list[tuple[object, int, int]] = []

    def walk(tree: Tree) -> None:
        places.append((found(tree), tree.line, tree.key_line))
        if isinstance(tree.value, dict | list):
            for item in tree.value.values() if isinstance(tree.value, dict) else tree.value:
                walk(item)

    walk(root)
    assert places == [
        ("a mapping", 1, 0),
        ("1", 1, 1),
        ("a list of 2", 3, 2),
        ("2", 3, 0),
        ("a mapping", 4, 0),
        ("3", 5, 4),
    ]


def test_anchors_aliases_and_merges() -> None:
    text = "base: &b {x: 1, y: 2}\nmore: &m {y: 9, z: 3}\none: *b\ntwo: {<<: *b, y: 5}\nall: {<<: [*b, *m], w: 0}\n"
    assert plain(text) == {
        "base": {"x": 1, "y": 2},
        "more": {"y": 9, "z": 3},
        "one": {"x": 1, "y": 2},
        "two": {"y": 5, "x": 1},
        "all": {"w": 0, "x": 1, "y": 2, "z": 3},
    }


def test_a_repeated_key_keeps_the_first_and_is_reported() -> None:
    root, problems = read_yaml("a: 1\nb: 2\na: 3\n")
    assert root is not None
    assert root.plain() == {"a": 1, "b": 2}
    assert problems == [Problem(3, "found the key 'a' again, after line 1; allowed: once")]


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("a: !!python/name:os.system x", 1, "found the tag !!python/name:os.system; allowed: no tags"),
        ("a: 1\nb: !foo {}", 2, "found the tag !foo; allowed: no tags"),
        ("a: 1\n---\nb: 2", 2, "found a second document; allowed: one"),
        ("a: *b", 1, "found the alias *b without its anchor; allowed: one defined above it"),
        ("a: &a [*a]", 1, "found the alias *a inside its own anchor; allowed: one defined above it"),
        ("[" * 40, 1, f"found more than {DEPTH_MAX} levels of nesting; allowed: fewer"),
        ("a: \0", 1, "found a character that YAML does not allow"),
        ("a: 1\nb: \x07", 2, "found a character that YAML does not allow"),
        ("#" * (1 << 20) + "\n", 1, "found more than 1 MiB of text; allowed: a smaller file"),
        ('a: "\\ud800"', 1, "found an escape of half a character; allowed: whole characters"),
        ("{a: 1, <<: [3]}", 1, "found 3 under <<; allowed: a mapping, or a list of mappings"),
    ],
    ids=range(11),
)
def test_refused(text: str, line: int, what: str) -> None:
    assert refusal(text) == Problem(line, what)


def test_a_bomb_of_aliases_is_refused() -> None:
    """The "billion laughs": each line holds the one before it ten times."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    expected = f"found more than {NODES_MAX} values, aliases included; allowed: fewer"
    assert refusal("\n".join(lines)) == Problem(6, expected)


def test_a_tower_of_aliases_is_refused() -> None:
    """Each line is shallow, but holds the one before it."""
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [[*a{n - 1}]]" for n in range(1, 30)]
    assert refusal("\n".join(lines)).text == f"found more than {DEPTH_MAX} levels of nesting; allowed: fewer"


def test_no_document_is_no_tree() -> None:
    assert read_yaml("# only a comment\n") == (None, [])


# Without what YAML's printable characters leave out, and without its line breaks.
texts = st.text(st.characters(exclude_categories=("Cc", "Cs", "Cn", "Zl", "Zp")), max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


def as_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: as_tuples(item) for key, item in value.items()}
    return tuple(as_tuples(item) for item in value) if isinstance(value, list) else value


@settings(deadline=None)
@given(json_values)
def test_json_reads_as_itself(value: Any) -> None:
    # "<<" is JSON's only key with a meaning of its own in YAML.
    text = json.dumps({"k": value}, ensure_ascii=False).replace('"<<"', '"merge"')
    assert plain(text) == as_tuples(json.loads(text))


@settings(deadline=None)
@given(st.text(alphabet="ab:-[]{},&*!<>'\"|?#%@`~ \n\t01.\\", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        read_yaml(text)
    except Unreadable as error:
        assert 1 <= error.problem.line <= text.count("\n") + 1
