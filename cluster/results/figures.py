"""The report's plots as plain data that plotly.js draws: what is plotted against virtual time, and the words to it.

Nothing here imports plotly: a figure is a dict of traces and layout, as its JSON schema has it. Several hosts
or device classes become panels of one figure with a common scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

#: Okabe and Ito's palette: told apart by colour-blind readers too.
PALETTE = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#b8a800", "#555555")
DASHES = ("solid", "dash", "dot", "dashdot")
#: Colour of a node by the class of its device: the nearer the memory, the bluer.
CLASS_COLOURS = {
    "dram": "#0072b2",
    "cxl": "#56b4e9",
    "compressed-ram": "#e69f00",
    "slow-distributed": "#009e73",
    "gpu": "#d55e00",
    "nic": "#cc79a7",
}
#: Panels, or lines of one kind in a panel, that a figure shows at most.
SHOWN_MAX = 8
_PANEL_PX = 240
_BOTTOM_PX = 48
_GAP_PX = 62
#: Width that the legend may take before it wraps: the page is at most 1120 wide.
_LEGEND_PX = 1000
_INK = "#333333"
_GRID_INK = "#e6e6e6"


@dataclass(slots=True)
class Panel:
    """One pair of axes."""

    title: str
    traces: list[dict[str, Any]] = field(default_factory=list)


@dataclass(slots=True)
class Figure:
    """A plot with its words. Without panels there is nothing to show, and `empty` says why."""

    title: str
    #: What it shows, in a sentence or two for somebody who does not know the kernel.
    text: str
    y_title: str
    panels: list[Panel]
    empty: str = ""
    #: Said below the plot: what was left out.
    note: str = ""
    log: bool = False
    y_max: float | None = None

    @property
    def top_px(self) -> int:
        """Room above the panels: the lines of the legend, and a panel's title."""
        names = dict.fromkeys(trace["name"] for panel in self.panels for trace in panel.traces)
        used_px, lines = 0, 1
        for name in names:
            width_px = 49 + round(6.9 * len(name))
            if used_px + width_px > _LEGEND_PX:
                used_px, lines = 0, lines + 1
            used_px += width_px
        return 22 * lines + (34 if any(panel.title for panel in self.panels) else 14)

    @property
    def height_px(self) -> int:
        """Height of the whole figure."""
        return _PANEL_PX * _rows(len(self.panels)) + self.top_px + _BOTTOM_PX

    @property
    def y_range(self) -> list[float]:
        """The common scale of all panels: exponents of ten when it is logarithmic."""
        if self.y_max is not None:
            return [0, self.y_max]
        values = [y for panel in self.panels for trace in panel.traces for y in trace["y"] if y is not None]
        if self.log:
            seen = [y for y in values if y > 0] or [1.0]
            return [math.log10(_round_number(min(seen), -1)), math.log10(_round_number(max(seen), 1))]
        for panel in self.panels:
            stack = [trace["y"] for trace in panel.traces if "stackgroup" in trace]
            values += [sum(y or 0 for y in ys) for ys in zip(*stack, strict=True)]
        return [0, 1.05 * max(values, default=0) or 1]


def in_larger_unit(figure: Figure) -> Figure:
    """The figure in GiB, if it is in MiB and that would make numbers of five digits."""
    if "MiB" not in figure.y_title or figure.y_range[1] < 10_000:
        return figure
    figure.y_title = figure.y_title.replace("MiB", "GiB")
    for panel in figure.panels:
        for trace in panel.traces:
            trace["y"] = [None if y is None else y / 1024 for y in trace["y"]]
            trace["hovertemplate"] = trace["hovertemplate"].replace("MiB", "GiB")
    return figure


@dataclass(frozen=True, slots=True)
class TimeAxis:
    """Virtual time in the unit that suits the run."""

    unit: str
    scale_ns: int
    end: float

    @classmethod
    def of(cls, end_ns: int) -> TimeAxis:
        """The axis of a run of this length."""
        for unit, scale in (("s", 10**9), ("ms", 10**6), ("µs", 10**3)):
            if end_ns >= 10 * scale:
                return cls(unit, scale, end_ns / scale)
        return cls("ns", 1, float(end_ns))

    def values(self, grid: np.ndarray) -> list[Any]:
        """Instants in the axis's unit."""
        return rounded(grid / self.scale_ns)


def line(
    name: str, colour: str, x: list[Any], y: np.ndarray, *, unit: str, digits: int = 2, **more: Any
) -> dict[str, Any]:
    """A line whose value at an instant holds for the interval that ends there.

    Hovering shows it with its unit and so many digits after the point.
    """
    style = {"color": colour, "width": 1.6, "shape": "vh"} | more.pop("line", {})
    return _trace("lines", name, x, y, f"%{{y:,.{digits}f}} {unit}") | {"line": style} | more


def marks(name: str, x: list[Any], y: np.ndarray, *, unit: str, **marker: Any) -> dict[str, Any]:
    """A mark for each interval, at its end: for what comes in bursts, where lines would be a thicket."""
    return _trace("markers", name, x, y, f"%{{y:,.0f}} {unit}") | {"marker": marker}


def area(name: str, colour: str, x: list[Any], y: np.ndarray, *, unit: str) -> dict[str, Any]:
    """One layer of a stack."""
    return line(
        name, colour, x, y, unit=unit, stackgroup="all", fillcolor=_paler(colour, 0.3), line={"width": 0.8}
    )


def limit(name: str, x: list[Any], y: np.ndarray, *, unit: str) -> dict[str, Any]:
    """A dashed line: what there is at most."""
    return line(name, _INK, x, y, unit=unit, line={"dash": "dash", "width": 1.2})


def line_styles(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """(colour, dash) by name, all different for the first 32."""
    return {
        name: (PALETTE[at % len(PALETTE)], DASHES[at // len(PALETTE) % len(DASHES)])
        for at, name in enumerate(names)
    }


def class_colour(device_class: str, before: int) -> str:
    """Colour of a node, when `before` nodes of its class have one already."""
    colour = CLASS_COLOURS.get(device_class)
    if colour is None:
        return PALETTE[before % len(PALETTE)]
    return _paler(colour, min(0.6, 0.25 * before)) if before else colour


def spec_of(figure: Figure, axis: TimeAxis) -> dict[str, Any]:
    """What `Plotly.newPlot` takes: {"data": traces, "layout": layout}."""
    data, named = [], set()
    columns = 1 if len(figure.panels) == 1 else 2
    layout: dict[str, Any] = {
        "height": figure.height_px,
        "margin": {"l": 72, "r": 40, "t": figure.top_px, "b": _BOTTOM_PX},
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": _INK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "hovermode": "x unified",
        "legend": {"orientation": "h", "x": 0, "y": 1, "yref": "container", "yanchor": "top"},
        "modebar": {"orientation": "v", "bgcolor": "white"},
        "annotations": [],
    }
    for at, panel in enumerate(figure.panels):
        number = "" if at == 0 else str(at + 1)
        _add_axes(layout, figure, axis, at, columns)
        for trace in panel.traces:
            shown = trace["name"] not in named
            named.add(trace["name"])
            data.append(trace | {"xaxis": f"x{number}", "yaxis": f"y{number}", "showlegend": shown})
            if "stackgroup" in trace:
                data[-1]["stackgroup"] = f"panel {at}"
    return {"data": data, "layout": layout}


def _add_axes(layout: dict[str, Any], figure: Figure, axis: TimeAxis, at: int, columns: int) -> None:
    number = "" if at == 0 else str(at + 1)
    rows = _rows(len(figure.panels))
    row, column = divmod(at, columns)
    plot_px = figure.height_px - figure.top_px - _BOTTOM_PX
    height = (plot_px - _GAP_PX * (rows - 1)) / rows / plot_px
    top = 1 - row * (height + _GAP_PX / plot_px)
    left = 0 if column == 0 else 0.54
    right = 1.0 if columns == 1 else left + 0.46
    last = at + columns >= len(figure.panels)
    layout[f"xaxis{number}"] = {
        "domain": [left, right],
        "anchor": f"y{number}",
        "range": [0, axis.end],
        "gridcolor": _GRID_INK,
        "linecolor": _INK,
        "ticks": "outside",
        "title": {"text": f"virtual time ({axis.unit})" if last else "", "standoff": 6, "font": {"size": 13}},
        "unifiedhovertitle": {"text": f"%{{x}} {axis.unit}"},
    } | ({"matches": "x"} if at else {})
    layout[f"yaxis{number}"] = {
        "domain": [max(0.0, top - height), top],
        "anchor": f"x{number}",
        "gridcolor": _GRID_INK,
        "linecolor": _INK,
        "zeroline": False,
        "title": {"text": figure.y_title if column == 0 else "", "standoff": 8, "font": {"size": 13}},
        **_y_scale(figure),
    } | ({"matches": "y"} if at else {})
    if panel_title := figure.panels[at].title:
        layout["annotations"].append(
            {
                "text": f"<b>{panel_title}</b>",
                "x": left,
                "y": top,
                "xref": "paper",
                "yref": "paper",
                "xanchor": "left",
                "yanchor": "bottom",
                "showarrow": False,
            }
        )


def _y_scale(figure: Figure) -> dict[str, Any]:
    # The range is worked out here: plotly does not scale axes by themselves when they match each other.
    scale: dict[str, Any] = {"range": figure.y_range}
    if figure.log:
        low, high = scale["range"]
        scale |= {"type": "log", "dtick": "D2" if high - low < 2.5 else 1, "tickformat": ",~r"}
    return scale


def _rows(panels: int) -> int:
    return max(1, -(-panels // 2)) if panels > 1 else 1


def _trace(mode: str, name: str, x: list[Any], y: np.ndarray, hover: str) -> dict[str, Any]:
    named = {"name": name, "legendgroup": name, "hovertemplate": hover}
    return {"type": "scatter", "mode": mode, "x": x, "y": rounded(y)} | named


def _round_number(value: float, towards: int) -> float:
    """The nearest of 1, 2, 5, 10, 20, ... below (-1) or above (1) a value, and not the value itself."""
    steps = [digit * 10.0**power for power in range(-4, 19) for digit in (1, 2, 5)]
    if towards < 0:
        return max([step for step in steps if step < value], default=steps[0])
    return min([step for step in steps if step > value], default=steps[-1])


def rounded(values: np.ndarray) -> list[Any]:
    """Six significant digits: more than a plot shows, and half the size. What is no number becomes a gap."""
    return [None if value != value else float(f"{value:.6g}") for value in values.tolist()]


def _paler(colour: str, by: float) -> str:
    parts = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(part + (255 - part) * by):02x}" for part in parts)
