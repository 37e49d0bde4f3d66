"""The figures of the document, as SVG, from the results alone. Drawing needs matplotlib, naming does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.paper.markup import called, short
from experiments.paper.records import Records, Row

SETTINGS = {
    # Equal results give equal files: names in an SVG are random otherwise.
    "svg.hashsalt": "onnxprune",
    "font.size": 8,
    # Text as text, not as outlines of its letters.
    "svg.fonttype": "none",
}
COLOURS = {
    "gfs": "tab:orange",
    "local": "tab:blue",
    "global": "tab:green",
    "combined": "tab:red",
    "exact": "tab:brown",
    "obs": "tab:purple",
    "random": "tab:gray",
    "local, no removal": "tab:cyan",
}
FLOOR = 1e-7


def _canvas() -> Any:
    """matplotlib's pyplot, without a screen. Raises ImportError where it is missing."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update(SETTINGS)
    import matplotlib.pyplot as plt

    return plt


def slug(key: str) -> str:
    """A file name."""
    return "".join(c if c.isalnum() else "-" for c in key).strip("-").lower()


def _legend(figure: Any) -> None:
    """One legend for all panels, below them, where it covers no curve."""
    entries = {
        label: line for axes in figure.axes for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=5, fontsize=6)


def _saved(figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None})
    _canvas().close(figure)


def _line(axes: Any, name: str, n: list[float], d: list[float | None], **style: Any) -> None:
    y = [max(v, FLOOR) if v is not None else np.nan for v in d]
    axes.semilogy(n, y, color=COLOURS.get(name), label=called(name), linewidth=1.2, **style)


def convergence(key: str, row: Row, path: Path) -> None:
    """Three panels: by steps, by units for the layer, by units for the network."""
    figure, panels = _canvas().subplots(1, 3, figsize=(10, 3.6), layout="constrained")
    for name, s in row["steps"].items():
        _line(panels[0], name, s["n"], s["d"])
    _rates(panels[0], row["steps"])
    panels[0].set(xlabel="steps", ylabel="layer's discrepancy", title="by steps")
    for name, c in row["curves"].items():
        _line(panels[1], name, c["local"]["n"], c["local"]["d"])
        _line(panels[2], name, c["output"]["n"], c["output"]["d"], marker=".")
    panels[1].set(xlabel="units kept", title="the layer's own outputs")
    panels[2].set(xlabel="units kept", title="the network's outputs")
    for axes in panels:
        axes.set_ylim(FLOOR, 3)
    figure.suptitle(f"{short(key)}: {row['units']} units")
    _legend(figure)
    _saved(figure, path)


def _rates(axes: Any, steps: Mapping[str, Row]) -> None:
    """The fitted rates, dotted: 1/n of the steps with γ ≥ 0, exp(-cn) of those without that bound."""
    for name, rate in (("local, no removal", "1/n"), ("gfs", "1/n²"), ("local", "exp(-cn)")):
        found = steps[name]["fit"].get(rate)
        if found is None:
            continue
        n = np.asarray(steps[name]["n"], float)
        decay = -found["exponent"] * (n / np.log(10) if rate == "exp(-cn)" else np.log10(n))
        style = {"linestyle": ":", "color": COLOURS[name], "linewidth": 1.0}
        axes.semilogy(n, np.maximum(10 ** (found["constant"] + decay), FLOOR), label=f"{rate} fitted", **style)


def combining(key: str, row: Row, path: Path) -> None:
    """The true discrepancy by steps and by units held."""
    figure, panels = _canvas().subplots(1, 2, figsize=(7, 3.4), layout="constrained")
    for name, k in row["kinds"].items():
        _line(panels[0], name, k["n"], k["output"])
        _line(panels[1], name, k["held"], k["output"], marker=".", linestyle="none", markersize=3)
    panels[0].set(xlabel="steps", ylabel="network's discrepancy")
    panels[1].set(xlabel="units held")
    for axes in panels:
        axes.set_ylim(1e-5, 10)
    figure.suptitle(short(key))
    _legend(figure)
    _saved(figure, path)


def scaling(row: Row, path: Path) -> None:
    """Processor time against units."""
    figure, axes = _canvas().subplots(figsize=(5, 3.6), layout="constrained")
    for name, m in row["methods"].items():
        axes.loglog(row["units"], m["seconds"], marker=".", label=f"{name}: N^{m['time_exponent']:.1f}")
    axes.set(xlabel="units N (4 N columns)", ylabel="processor time, s")
    _legend(figure)
    _saved(figure, path)


_PLOTS: Mapping[str, Callable[[str, Row, Path], None]] = {"convergence": convergence, "combining": combining}


def names(records: Records) -> dict[str, str]:
    """The files of all figures that there are results for, by what they show."""
    found = {f"{s} {k}": f"{s}-{slug(k)}.svg" for s in _PLOTS for k, _ in records.rows(s)}
    return found | ({"scaling": "scaling-units.svg"} if "units" in records.section("scaling") else {})


def draw(records: Records, folder: Path) -> None:
    """All of them. Raises ImportError where matplotlib is missing."""
    _canvas()
    folder.mkdir(parents=True, exist_ok=True)
    for section, plot in _PLOTS.items():
        for key, row in records.rows(section):
            plot(key, row, folder / names(records)[f"{section} {key}"])
    if "units" in records.section("scaling"):
        scaling(records.section("scaling")["units"], folder / names(records)["scaling"])
