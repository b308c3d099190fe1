"""The HTML report: complete without a network, every plot in its place, and sound when there is nothing to plot."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from fake_results import samples_of, summary_of

from privmem.cluster.results import report
from privmem.cluster.results.figures import TimeAxis
from privmem.cluster.results.plots import all_figures
from privmem.cluster.results.report import render_report
from privmem.cluster.results.series import tables_of

#: Those of runs whose devices report to a compressed RAM service (test_cram_report.py); here there is none.
OF_CRAM = [
    "Capacity of compressed RAM",
    "State of the compressed RAM service",
    "Pages refused after they were accepted",
]
TITLES = [
    "Memory in use, by node",
    "Where accesses go, by node",
    "Mean latency of an access",
    "Page faults",
    "Demotion and promotion",
    "Compression ratio",
    "Physical memory used on devices that store pages",
    *OF_CRAM,
    "Pooled memory granted to hosts",
    "Pooled memory against the host's share",
    "What sharing a pool saves",
    "Latency of devices under load",
    "Traffic of devices",
]
CONFIG = {"name": "fake", "hosts": [{"name": "h0"}]}
INTERRUPTED = {"status": "interrupted", "digest": "", "hosts": {}, "devices": {}, "scheduler": {}}


class Page(HTMLParser):
    """Tags with their attributes, texts of headings, and the data of plots."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.specs: dict[str, Any] = {}
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        tag, attrs = self.open[-1] if self.open else ("", {})
        if tag == "h2":
            self.headings.append(data)
        if attrs.get("type") == "application/json":
            self.specs[str(attrs["id"])] = json.loads(data)


PLOTLY_JS = report.plotly_js


@pytest.fixture(autouse=True)
def _short_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without the 5 MB of plotly.js."""
    monkeypatch.setattr(report, "plotly_js", lambda: "/* plotly.js */")


def page_of(summary: dict[str, Any], samples: list[Any]) -> str:
    return render_report(summary, tables_of(samples), CONFIG)


def test_every_plot_has_its_title_its_words_and_its_data() -> None:
    html = page_of(summary_of(), samples_of())
    page = Page(html)
    assert [heading for heading in page.headings if heading in TITLES] == TITLES
    drawn = [number for number, title in enumerate(TITLES) if title not in OF_CRAM]
    assert sorted(page.specs) == sorted(f"spec-{number}" for number in drawn)
    assert [attrs["data-spec"] for tag, attrs in page.tags if attrs.get("class") == "plot"] == [
        f"spec-{number}" for number in drawn
    ]
    for spec in page.specs.values():
        assert all(len(trace["x"]) == len(trace["y"]) > 0 for trace in spec["data"])
        assert spec["layout"]["xaxis"]["title"]["text"] in ("virtual time (ms)", "")
        assert spec["layout"]["yaxis"]["title"]["text"]
        assert all(trace["name"] for trace in spec["data"])


def test_nothing_is_loaded_from_elsewhere() -> None:
    html = page_of(summary_of(), samples_of())
    assert re.findall(r"https?:|\bsrc=|\bhref=|<link|@import|url\(|//[a-z]", html) == []
    policies = [
        a["content"] for tag, a in Page(html).tags if a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policies == [
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
    ]


def test_no_button_sends_the_plot_anywhere() -> None:
    """plotly.js 4 has one that uploads it, by default."""
    html = page_of(summary_of(), samples_of())
    assert 'plotlyServerURL: "", showSendToCloud: false' in html
    assert '"sendChartToCloud"' in html


def test_plotly_js_is_inside() -> None:
    assert "<script>/* plotly.js */</script>" in page_of(summary_of(), samples_of())
    assert len(PLOTLY_JS()) > 1_000_000
    assert "</script" not in PLOTLY_JS()


@pytest.mark.parametrize("status", ["complete", "interrupted"])
def test_a_run_without_samples(status: str) -> None:
    page = Page(page_of(summary_of() | INTERRUPTED | {"status": status, "virtual_ns": 0}, []))
    assert [heading for heading in page.headings if heading in TITLES] == TITLES
    assert page.specs == {}
    assert sum(attrs.get("class") == "empty" for _, attrs in page.tags) == len(TITLES)


def test_an_interrupted_run_says_so() -> None:
    html = page_of(summary_of() | INTERRUPTED, samples_of())
    assert "This run was interrupted at 20 ms of virtual time." in html
    assert "no digest, as the run did not end" in html
    assert len(Page(html).specs) == len(TITLES) - len(OF_CRAM)
    granted = Page(html).specs["spec-10"]["data"]
    assert [(t["name"], t["y"]) for t in granted] == [("h0", [0, 0, 1, 1, 1]), ("h1", [0, 0, 2, 2, 2])]
    assert "interrupted" not in page_of(summary_of(), samples_of())


def test_names_are_escaped() -> None:
    nasty = "</script><script>alert(1)</script>"
    summary = summary_of() | {"name": nasty}
    summary["hosts"][nasty] = summary["hosts"]["h1"]
    samples = samples_of()
    samples[0].rows[0]["host"] = f"host/{nasty}"
    html = page_of(summary, samples)
    assert "<script>alert" not in html
    Page(html)


def test_the_headline_and_the_folded_parts() -> None:
    html = page_of(summary_of(), samples_of())
    for text in (
        "<b>20 ms</b><span>virtual time, in 4 epochs</span>",
        "<b>6 k</b><span>memory accesses</span>",
        "<b>200 ns</b><span>an access on average; 0 ns of it page faults</span>",
        "<b>40</b><span>pages demoted; 24 to compressed RAM, 6 to a pooled device</span>",
        "<b>2.50 to 1</b><span>compression ratio at the end</span>",
        "<b>4</b><span>extents of pooled memory granted: h0 2, h1 2</span>",
        "digest <code>0123456789abcdef0123456789abcdef</code>",
        "<summary>Configuration, with every default</summary><pre>name: fake\nhosts:\n- name: h0\n</pre>",
    ):
        assert text in html


def test_values_of_the_plots() -> None:
    figures, _ = all_figures(summary_of(), tables_of(samples_of()))
    used, share, latency, faults, moves, ratio, full, *of_cram, pool, due, saving, loaded, traffic = figures
    assert [(figure.title, figure.panels) for figure in of_cram] == [(title, []) for title in OF_CRAM]
    assert [panel.title for panel in used.panels] == ["h0", "h1"]
    assert [(t["name"], t["y"]) for t in used.panels[0].traces] == [
        ("node 0: dram", [4.0] * 5),
        ("node 1: compressed-ram, private", [6.0] * 5),
        ("node 2: slow-distributed, private", [7.0] * 5),
        ("all memory online", [24.0] * 5),
    ]
    assert [t["y"][0] for t in share.panels[0].traces] == [80.0, 13.3333, 6.66667]
    assert [t["y"] for t in latency.panels[0].traces] == [[200.0] * 5] * 2
    assert latency.panels[1].traces[0]["y"] == [201.333, 201.333, 200.0, 200.0, 200.0]
    assert [(t["name"], t["y"]) for t in faults.panels[0].traces] == [
        ("all page faults (pgfault)", [2000.0] * 4),
        ("writes to compressed RAM (pgpromote_fence)", [None, 200.0, 200.0, 200.0]),
    ]
    assert moves.note.startswith("None in the whole run: demoted while an allocation waits")
    assert [t["y"] for t in ratio.panels[0].traces] == [[2.5] * 5] * 2
    assert full.panels[0].traces[0]["y"] == [0.195312] * 5
    assert [(t["name"], t["y"]) for t in pool.panels[0].traces] == [("h0", [8.0] * 5), ("h1", [8.0] * 5)]
    assert [(t["name"], t["y"]) for t in due.panels[0].traces] == [
        ("h0", [0.0, 0.0, 1.0, 1.0, 1.0]),
        ("due to h0", [0.0, 0.0, 1.5, 1.5, 1.5]),
        ("h1", [0.0, 0.0, 2.0, 2.0, 2.0]),
        ("due to h1", [0.0, 0.0, 1.5, 1.5, 1.5]),
    ]
    assert [t["y"] for t in saving.panels[0].traces] == [[14.0] * 5, [2.0] * 5, [16.0] * 5, [16.0] * 5]
    assert [panel.title for panel in loaded.panels] == ["dram", "compressed-ram"]
    assert traffic.panels[0].traces[0]["y"][-1] == pytest.approx(4096 / 0.005 / 2**20, rel=1e-5)


def test_a_large_rack_shows_a_part_and_says_so() -> None:
    figures, _ = all_figures(summary_of(hosts=12), tables_of(samples_of(hosts=12)))
    used, *_, loaded, _ = figures
    assert [panel.title for panel in used.panels] == [f"h{number}" for number in range(8)]
    assert used.note == "4 more hosts are in host_node.parquet."
    assert [len(panel.traces) for panel in loaded.panels] == [8, 8]
    assert loaded.note == "The 8 busiest of each class; 8 more are in device.parquet."


def test_what_sharing_saves_is_between_the_peak_of_the_sum_and_the_sum_of_peaks() -> None:
    """Two hosts that hold 6 and 2 MiB in turn."""
    samples = samples_of()
    for sample in samples:
        for row in sample.rows:
            if row.get("nid") == 2:
                turn = row["epoch"] % 2 == (row["host"] == "host/h0")
                row |= {"present_pages": 1536 if turn else 512, "free_pages": 256}
    figure = {f.title: f for f in all_figures(summary_of(), tables_of(samples))[0]}[
        "What sharing a pool saves"
    ]
    used, idle, pool, apart = (trace["y"] for trace in figure.panels[0].traces)
    assert (used, idle, pool) == ([6.0] * 5, [2.0] * 5, [8.0] * 5)
    assert apart == [8.0, 8.0, 12.0, 12.0, 12.0]


def test_a_pool_without_shares_is_not_held_against_them() -> None:
    samples = samples_of()
    for sample in samples:
        for row in sample.rows:
            if "entitled_pages" in row:
                row["entitled_pages"] = row["granted_pages"] + 64  # promised
    figures = {f.title: f for f in all_figures(summary_of(), tables_of(samples))[0]}
    assert figures["Pooled memory against the host's share"].panels == []


def test_axes_hold_what_they_show() -> None:
    samples = samples_of()
    for sample in samples:
        for row in sample.rows:
            for name in ("present_pages", "free_pages"):
                if name in row:
                    row[name] *= 1 << 20
    used, *_, loaded, _ = all_figures(summary_of(), tables_of(samples))[0]
    assert used.y_title == "GiB"
    assert used.y_range == [0, pytest.approx(1.05 * 24 * 1024)]
    assert "GiB" in used.panels[0].traces[0]["hovertemplate"]
    assert [round(10**edge) for edge in loaded.y_range] == [50, 200]


@pytest.mark.parametrize(
    ("end_ns", "unit", "end"),
    [
        (9, "ns", 9),
        (10_000, "µs", 10),
        (10_000_000, "ms", 10),
        (9_999_000_000, "ms", 9999),
        (10**10, "s", 10),
    ],
)
def test_the_time_axis_has_a_fitting_unit(end_ns: int, unit: str, end: float) -> None:
    axis = TimeAxis.of(end_ns)
    assert (axis.unit, axis.end) == (unit, end)
