"""What goes into a device comes out, byte for byte: any sequence of operations, against a dict of pages."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from privmem.nodeagent.content import LITERAL, ContentTable
from privmem.nodeagent.device.backing import PageStore
from privmem.nodeagent.device.compression import CompressionEngine
from privmem.scheduler import plain

PAGES = 24
SOURCES = [
    {"kind": "generator", "seed": 5, "zero_permille": 300, "random_bytes": 700, "changed_bytes": 64},
    {"kind": "image", "rows": "rows", "table": "table"},
]
RESOURCES = {
    "rows": np.frombuffer(np.random.default_rng(1).bytes(3 * 4096), dtype=np.uint8).reshape(3, 4096),
    "table": np.array([[0, 1, 2, 0], [0, 2, 2, 1]], dtype=np.int32),
}
CONTENT = ContentTable(SOURCES, RESOURCES)


def text(words: list[bytes]) -> bytes:
    return (b" ".join(words) + b"\n") * 4096


BODIES = st.one_of(
    st.binary(min_size=8, max_size=8).map(lambda word: word * 512),
    st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).bytes(4096)),
    st.lists(st.binary(min_size=1, max_size=12), min_size=1, max_size=20).map(text),
    st.binary(min_size=0, max_size=600).map(lambda head: head + bytes(4096)),
    st.tuples(st.integers(0, 4095), st.integers(1, 255)).map(
        lambda at: bytes(at[0]) + bytes([at[1]]) + bytes(4096)
    ),
).map(lambda body: body[:4096])

#: A page, and either its bytes or its description.
ROW = st.tuples(
    st.integers(0, PAGES - 1),
    st.one_of(BODIES, st.tuples(st.integers(0, 2), st.integers(0, 5), st.integers(0, 40))),
)


def store_rows(store: PageStore, rows: list[tuple[int, bytes | tuple[int, int, int]]]) -> None:
    described = [(LITERAL, 0, 0) if isinstance(what, bytes) else what for _, what in rows]
    bodies = [np.frombuffer(what, np.uint8) for _, what in rows if isinstance(what, bytes)]
    source, index, version = zip(*described, strict=True)
    store.store(
        np.array([dpa for dpa, _ in rows], dtype=np.int32),
        np.array(source, dtype=np.uint16),
        np.array(index, dtype=np.uint32),
        np.array(version, dtype=np.uint16),
        np.stack(bodies) if bodies else np.zeros((0, 4096), dtype=np.uint8),
    )


class StoreAgainstDict(RuleBasedStateMachine):
    """The store has physical memory for half of its pages: what does not surely fit is not sent."""

    @initialize(
        codec=st.sampled_from(["lz4", "zstd", "none", None]),
        block=st.sampled_from([1024, 2048, 4096]),
        granule=st.sampled_from([16, 64, 1024]),
        keep_bytes=st.booleans(),
    )
    def begin(self, codec: str | None, block: int, granule: int, keep_bytes: bool) -> None:
        self.spec = {"codec": codec, "level": None, "block": block, "granule": granule}
        self.keep_bytes = keep_bytes
        self.store = self.fresh()
        self.model: dict[int, bytes | tuple[int, int, int]] = {}

    def fresh(self) -> PageStore:
        engine = CompressionEngine(self.spec, memo_pages=4) if self.spec["codec"] else None
        return PageStore(PAGES, PAGES // 2 * 4096, CONTENT, engine, self.keep_bytes)

    @rule(rows=st.lists(ROW, min_size=1, max_size=6))
    def put(self, rows: list[tuple[int, bytes | tuple[int, int, int]]]) -> None:
        rows = rows[: self.store.room_pages]
        if rows:
            store_rows(self.store, rows)
            self.model |= dict(rows)

    @precondition(lambda self: self.model)
    @rule(draw=st.randoms(use_true_random=False))
    def free(self, draw) -> None:
        gone = draw.sample(sorted(self.model), draw.randint(1, len(self.model)))
        self.store.free(np.array(gone, dtype=np.int32))
        for dpa in gone:
            del self.model[dpa]

    @rule()
    def restart(self) -> None:
        header, arrays = plain.pack(self.store.snapshot())
        self.store = self.fresh()
        self.store.restore(plain.unpack(header, [array.copy() for array in arrays]))
        assert plain.pack(self.store.snapshot())[0] == header

    @invariant()
    def everything_is_there(self) -> None:
        if not hasattr(self, "model"):
            return
        self.store.validate()
        held = np.flatnonzero(self.store.holds(np.arange(PAGES)))
        assert held.tolist() == sorted(self.model)
        source, index, version, literal = self.store.load(held)
        bodies = iter(literal)
        for at, dpa in enumerate(held.tolist()):
            what = self.model[dpa]
            if isinstance(what, bytes):
                assert int(source[at]) == LITERAL and next(bodies).tobytes() == what
                assert self.store.page_bytes(dpa).tobytes() == what
            else:
                assert (int(source[at]), int(index[at]), int(version[at])) == what
                assert self.store.page_bytes(dpa).tobytes() == bytes(CONTENT.page_bytes(*what))
        assert 0 <= self.store.used_bytes <= PAGES // 2 * 4096
        assert self.store.stored_pages == len(self.model)


StoreAgainstDict.TestCase.settings = settings(max_examples=20, stateful_step_count=20, deadline=None)
TestStoreAgainstDict = StoreAgainstDict.TestCase


@given(body=BODIES, codec=st.sampled_from(["lz4", "zstd"]))
@settings(max_examples=60, deadline=None)
def test_a_page_never_takes_more_than_a_page(body: bytes, codec: str) -> None:
    engine = CompressionEngine({"codec": codec, "level": None, "block": 4096, "granule": 64})
    store = PageStore(1, 4096, CONTENT, engine)
    store_rows(store, [(0, body)])
    same = body == body[:8] * 512
    assert (store.used_bytes == 0) == same
    assert store.used_bytes <= 4096 and store.stored_bytes <= store.used_bytes
    assert store.page_bytes(0).tobytes() == body
