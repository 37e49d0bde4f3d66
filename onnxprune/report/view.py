"""What people are shown of a report: the numbers of its document, sorted and worded for a page.

Nothing is computed here that the document does not hold, so that a page made of the JSON file says the same.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from onnxprune.measures.figures import ERROR, change_of, percent
from onnxprune.measures.gates import as_typed
from onnxprune.report.devices import device_line
from onnxprune.report.document import DONE, Document
from onnxprune.report.groups import (
    NOT_MEASURED,
    curves_by_group,
    error_alone,
    error_of_layer,
    if_cut,
    in_runs,
    is_cut,
    layer_called,
    of_whole,
    saving,
    share,
    time_saved,
    why_whole,
    width,
)
from onnxprune.report.points import best_of, said_of
from onnxprune.report.units import count, duration, latency, size
from onnxprune.tasks.answered import SHARE
from onnxprune.tasks.names import CLASSIFICATION

# What a level of the verdict, or an outcome, is called.
LABELS = {"unknown": "not measured", "plan": "plan only"}
Rows = list[tuple[str, ...]]
_LISTED = 12
_PICTURES = re.compile(r"data:image/(?:png|jpeg);base64,[A-Za-z0-9+/]+={0,2}")


def subject(document: Document) -> str:
    """What a report is on: the model, "a and b" where models were timed; empty where that is not known."""
    if document["kind"] == "bench":
        return " and ".join(str(m["model"]) for m in document.get("models") or ())
    return str(document.get("model") or "")


def headline(document: Document) -> tuple[str, str]:
    """(level, text) of what comes first: why the run was refused, else the verdict.

    level: "good", "doubtful", "bad", "unknown", "refused", "failed", or "plan" for a dry run.
    """
    if document["status"] != DONE:
        return str(document["status"]), str(document.get("reason") or "")
    if document.get("dry_run"):
        return "plan", "dry run: a plan was made, and no model was written"
    if document.get("points"):
        return "good" if best_of(document) else "doubtful", said_of(document)[0]
    verdict = document.get("verdict")
    if verdict:
        level, text = str(verdict["level"]), str(verdict["text"])
        return level, text.removeprefix(f"{level}: ")
    return "unknown", "nothing was compared"


def size_rows(document: Document) -> Rows:
    """(what, before, after, removed) for MACs, parameters, file size and time; () where nothing was counted."""
    before, after = document.get("before"), document.get("after")
    if not before or not after:
        return []
    rows: Rows = [
        _row("MACs per sample", before["macs"], after["macs"], count),
        _row("parameters", before["parameters"], after["parameters"], count),
    ]
    if after["bytes"]:
        rows.append(_row("file size", before["bytes"], after["bytes"], size))
    else:
        rows.append(("file size", size(before["bytes"]), "not written", ""))
    return [*rows, time_row(document)]


def _row(name: str, before: float, after: float, text: Any) -> tuple[str, ...]:
    return name, text(before), text(after), f"{1.0 - after / before:.1%}" if before else ""


def time_row(document: Document) -> tuple[str, ...]:
    """The time of a run, measured by `--bench` or a budget of latency, or predicted by a timing file; else that it was
    not measured."""
    bench, timing = document.get("latency"), document.get("timing")
    if bench and bench.get("comparison"):
        first, second = (latency(m["median"]) for m in bench["models"])
        where = str(bench["provider"]).removesuffix("ExecutionProvider")
        return f"time of a run, {where}", first, second, f"{1.0 - bench['comparison']['ratio']:.1%}"
    if timing:
        seconds = timing["before_seconds"], timing["after_seconds"]
        foretold = timing["measured"] is None
        left = timing["predicted"] if foretold else timing["measured"]
        what = "time of a run, predicted" if foretold else "time of a run"
        return what, latency(seconds[0]), latency(seconds[1]), f"{1.0 - left:.1%}"
    return "time of a run", NOT_MEASURED, NOT_MEASURED, ""


def tiles(document: Document) -> list[tuple[str, str, str]]:
    """(number, what it is, from what to what) of the few figures that are shown large."""
    found = [
        (removed, f"{name} removed", f"{before} → {after}") for name, before, after, removed in size_rows(document)
    ]
    found = [row for row in found if row[0]]
    best = best_of(document)
    if best is not None:
        return [*found, *_tiles_of(best, document)]
    if document.get("output_error") is not None:
        bounds = (document.get("error") or {}).get("interval")
        interval = f"95% interval {percent(bounds[0])} to {percent(bounds[1])}" if bounds else ""
        found.append((percent(document["output_error"]), "output error", interval))
    if document.get("agreement") is not None:
        found.append((percent(document["agreement"]), "agreement", "get the same class"))
    return found


def _tiles_of(best: Mapping[str, Any], document: Document) -> list[tuple[str, str, str]]:
    """Of a sweep those of its best point."""
    found = [(f"{best['achieved']:.1%}", f"{document['counted']} removed", f"--ratio {best['ratio']:g}")]
    if best.get("error") is not None:
        bounds = best.get("interval")
        interval = f"95% interval {percent(bounds[0])} to {percent(bounds[1])}" if bounds else ""
        found.append((percent(best["error"]), "output error", interval))
    if best.get("agreement") is not None:
        found.append((percent(best["agreement"]), "agreement", "get the same class"))
    if best.get("drop") is not None:
        found.append((f"{best['drop']:.2f}", "points of top-1 lost", f"{percent(best['top1'])} are right"))
    if best.get("time_ratio") is not None:
        before = latency(document.get("original_seconds") or 0.0)
        found.append((f"{best['time_ratio']:.3f} ×", "time of a run", f"the original takes {before}"))
    return found


def quality_rows(document: Document) -> Rows:
    """(what, value) of everything that compares the result's outputs with the original's."""
    rows: Rows = []
    summary: Mapping[str, Any] = document.get("error") or {}
    error = document.get("output_error")
    where = ""
    if document["kind"] != "eval" and "held_out" in summary:
        where = ", held out" if summary["held_out"] else ", on the calibration samples"
    if document.get("accuracy") is not None:
        rows.append(("top-1", percent(document["accuracy"])))
    if document.get("original_accuracy") is not None:
        drop = document.get("drop")
        rows.append(("top-1 of the original", percent(document["original_accuracy"])))
        rows += [] if drop is None else [(f"{change_of(drop)[0]} of top-1", f"{change_of(drop)[1]} points")]
    if error is not None:
        bounds = summary.get("interval")
        interval = f", 95% interval {percent(bounds[0])} to {percent(bounds[1])}" if bounds else ""
        rows.append((f"output error{where}", f"{percent(error)}{interval}, {samples(summary.get('samples', 0))}"))
    elif document.get("verdict"):
        rows.append((f"output error{where}", f"{NOT_MEASURED}: {summary.get('why') or 'no reason was given'}"))
    rows += [(f"  {name}", text) for name, text in _outputs(document.get("outputs") or ())]
    if document.get("agreement") is not None and document.get("task") in (None, CLASSIFICATION):
        rows.append(("agreement", f"{percent(document['agreement'])} get the same class"))
    told = {name for name, _ in rows}  # what a task measures may be there by the same name
    return rows + [(str(s["name"]), _score(s)) for s in document.get("scores") or () if s["name"] not in told]


def _score(score: Mapping[str, Any]) -> str:
    """A number of a task's metric, and the original's where it has one."""
    if score["value"] is None:
        return f"{NOT_MEASURED}: {score['why']}"
    shown = "{:.2%}" if score.get("unit") == SHARE else "{:.5g}"
    before = "" if score["original"] is None else f", the original's {shown.format(score['original'])}"
    return f"{shown.format(score['value'])}{before} ({score['about']})"


def _outputs(figures: Sequence[Mapping[str, Any]]) -> Rows:
    """Each output's own figure, where there are several, or one is not the output itself."""
    if len(figures) == 1 and not figures[0]["at"] and figures[0]["value"] is not None:
        return []
    rows: Rows = []
    for f in figures:
        name = ", ".join(f["outputs"]) + (f" at {f['at']}" if f["at"] else "")
        if f["value"] is None:
            rows += [(name, f"{NOT_MEASURED}: {f['why']}")] if f["counts"] else []
        else:
            rows.append((name, percent(f["value"]) + ("" if f["kind"] == ERROR else " of the entries differ")))
    return rows


def gate_rows(document: Document) -> list[tuple[bool, str, str]]:
    """(held, name with limit, text) of every gate."""
    return [(bool(g["held"]), as_typed(g["name"], g["limit"]), str(g["text"])) for g in document.get("gates") or ()]


def refusals(told: Sequence[str]) -> str:
    """What TensorRT's parser refuses, in short: the notes say what."""
    what = f"{len(told)} refused: see the notes" if told else "nothing refused"
    return f"{what} (by its documentation)"


def check_rows(document: Document) -> Rows:
    """(what, value) of the checks that hold the result against the original."""
    checks: Mapping[str, Any] = document.get("checks") or {}
    rows: Rows = []
    for key, name in (
        ("normalised_against_original", "normalised against original"),
        ("slice_against_oracle", "slice against masked original"),
    ):
        if checks.get(key) is not None:
            rows.append((name, f"{checks[key]:.1e}, at most {checks['tolerance']:.0e}"))
    if checks.get("input_sizes_run"):
        rows.append(("input sizes run", str(checks["input_sizes_run"])))
    if checks.get("tensorrt") is not None:
        rows.append(("TensorRT's parser", refusals(checks["tensorrt"])))
    if checks.get("refit"):
        rows.append(("refit", str(checks["refit"])))
    return rows


_STEPS = {"pruned": "pruned alone", "alone": "{} alone, of the original", "result": "result"}
_IN_FLOAT = 8


def fewer_bits_rows(document: Document) -> list[tuple[str, str]]:
    """(what, value) of how the result was stored in fewer bits, and what each step cost."""
    p: Mapping[str, Any] = document.get("fewer_bits") or {}
    if not p:
        return []
    name = str(p["precision"])
    told = f"{p['nodes']} operators compute in half precision"
    if p["share"] is not None:
        told = f"{p['nodes']} operators compute in integers, with {p['share']:.1%} of the multiplications"
    rows = [(name, f"{told} ({p['target']})")]
    if p["ranges"] is not None:
        tried = " · ".join(f"{k} {_error(v)}" for k, v in p["tried"].items())
        how = f"{p['ranges']}, of {samples(p['samples'])}"
        if len(p["tried"]) > 1:
            how += f" (output error on {p['chosen_on']} of them: {tried})"
        rows.append(("ranges", how))
    if p["reduce_range"]:
        rows.append(("", "weights in 7 bits (reduce_range)"))
    if p["equalised"]:
        before = f": the output error was {_error(p['equalised_from'])} before"
        rows.append(("equalised", f"channels of {p['equalised']} activations have one scale{before}"))
    floating = p["floating"]
    for i, x in enumerate(floating[:_IN_FLOAT]):
        rows.append(("in float" if i == 0 else "", f"{x['name'] or x['operator']}: {x['why']}"))
    if len(floating) > _IN_FLOAT:
        rows.append(("", f"and {len(floating) - _IN_FLOAT} more"))
    errors = [(_STEPS[k].format(name), v) for k, v in p["errors"].items() if k in _STEPS]
    if len(errors) > 1:
        rows.append(("error of each step", " · ".join(f"{k}: {_error(v)}" for k, v in errors)))
    sizes = p["bytes"]
    change = f"{size(sizes['float'])} → {size(sizes['result'])}"
    return [*rows, ("file in float, and now", change)]


def _error(value: float | None) -> str:
    return NOT_MEASURED if value is None else percent(value)


def group_rows(document: Document) -> Rows:
    """(group, width, MACs saved, parameters saved, time saved, error alone, producers, consumers, remark) of the groups
    that are cut; savings and error of each group by itself."""
    rows: Rows = []
    whole = document.get("before") or {"macs": 0, "parameters": 0}
    curves = curves_by_group(document.get("curves") or ())
    for i, g in enumerate(document.get("groups") or ()):
        if is_cut(g):
            remarks = ["branch removed"] * (not g["channels_after"]) + ["mixing"] * bool(g["mixing"])
            saved = (saving(g, kind, whole[kind]) for kind in ("macs", "parameters"))
            alone = (time_saved(document.get("timing"), i), error_alone(curves.get(i), g))
            numbers = (str(g["producers"]), str(g["consumers"]))
            rows.append((str(g["name"]), width(g), *saved, *alone, *numbers, ", ".join(remarks)))
    return rows


def gone_layers(document: Document) -> Rows:
    """(layer, MACs saved, parameters saved, error alone) of the layers that went as a whole."""
    whole = document.get("before") or {"macs": 0, "parameters": 0}
    rows: Rows = []
    for layer in document.get("whole_layers") or ():
        if layer["gone"]:
            saved = (of_whole(layer[kind], whole[kind]) for kind in ("macs", "parameters"))
            rows.append((layer_called(layer), *saved, error_of_layer(layer)))
    return rows


def gone_experts(document: Document) -> Rows:
    """(mixture, "8 → 6" experts, those that went, their share of what all give) of the mixtures that lost some."""
    return [
        (
            str(m["name"]),
            f"{m['experts']} → {len(m['kept'])}",
            in_runs(m["gone"]),
            "" if m["lost"] is None else percent(m["lost"]),
        )
        for m in document.get("experts") or ()
    ]


def whole_rows(document: Document) -> list[tuple[str, Rows]]:
    """(why, (group, width, MACs that it has a part in, error if it were cut) of each) of the groups that stay."""
    found: dict[str, Rows] = {}
    macs = (document.get("before") or {"macs": 0})["macs"]
    curves = curves_by_group(document.get("curves") or ())
    for i, g in enumerate(document.get("groups") or ()):
        if not is_cut(g):
            row = (str(g["name"]), width(g), share(g, macs), if_cut(curves.get(i), g))
            found.setdefault(why_whole(g), []).append(row)
    return sorted(found.items(), key=lambda row: -len(row[1]))


def pinned_by_remedy(document: Document) -> list[dict[str, Any]]:
    """The axes that stay, by what would free them: {remedy, axes, channels, reasons: [{reason, operator, axes,
    channels, tensors}]}, the most frequent first; of tensors the first few, and `more`."""
    by_remedy: dict[str, dict[tuple[str, str], list[Mapping[str, Any]]]] = {}
    for p in document.get("pinned") or ():
        by_remedy.setdefault(p["remedy"], {}).setdefault((p["reason"], p["operator"]), []).append(p)
    blocks = []
    for remedy, reasons in by_remedy.items():
        rows = [_reason(reason, operator, own) for (reason, operator), own in reasons.items()]
        rows.sort(key=lambda r: -r["axes"])
        totals = {k: sum(r[k] for r in rows) for k in ("axes", "channels")}
        blocks.append({"remedy": remedy, "reasons": rows} | totals)
    return sorted(blocks, key=lambda b: -b["axes"])


def _reason(reason: str, operator: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    tensors = list(dict.fromkeys(str(p["tensor"]) for p in rows))
    return {
        "reason": reason,
        "operator": operator,
        "axes": len(rows),
        "channels": sum(p["channels"] for p in rows),
        "tensors": tensors[:_LISTED],
        "more": max(len(tensors) - _LISTED, 0),
    }


def data_rows(document: Document) -> Rows:
    """(input, type, shape, least, most, mean, standard deviation) of the calibration data."""
    data: Mapping[str, Any] = document.get("calibration") or {}
    return [
        (
            str(f["name"]),
            str(f["dtype"]),
            _shape(f["shape"]),
            *(_number(f[k]) for k in ("least", "most", "mean", "std")),
        )
        for f in data.get("inputs") or ()
    ]


def _shape(shape: Iterable[int]) -> str:
    return " × ".join("?" if n < 0 else str(n) for n in shape) or "scalar"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def pictures(document: Document) -> str:
    """Some of the images as an address that a page embeds; empty where there is none, or it is another address."""
    data = document.get("calibration")
    address = str(data.get("pictures") or "") if isinstance(data, Mapping) else ""
    return address if _PICTURES.fullmatch(address) else ""


def data_line(document: Document) -> str:
    """Where the samples are from, how many, and how many of them judge; of `eval` too."""
    data = document.get("calibration")
    if isinstance(data, Mapping):
        labels = f", with the labels {data['labels']!r}" if data.get("labels") is not None else ""
        return f"{data['origin']}: {samples(data['samples'])}{labels}, {data['held_out']} of them held out" + (
            f"; {data['prepared']}" if data.get("prepared") else ""
        )
    if document.get("data") is not None and document["kind"] == "eval":
        prepared = f"; {document['prepared']}" if document.get("prepared") else ""
        return f"{document['data']}: {samples(document.get('samples', 0))}{prepared}"
    return ""


def repeat_rows(document: Document) -> Rows:
    """(what, value) of what a repetition needs: files and their checksums, seed, versions, processor."""
    rows: Rows = [("model", str(document.get("model") or ""))] if document["kind"] != "bench" else []
    rows += [("sha256 of the model", str(document["model_sha256"]))] if document.get("model_sha256") else []
    rows += [("result", str(document["output"]))] if document.get("output") else []
    rows += [("build an engine", str(document["engine"]))] if document.get("engine") else []
    data = document.get("calibration") or {}
    digest = data.get("sha256") or document.get("data_sha256")
    rows += [("sha256 of the samples", str(digest))] if digest else []
    config: Mapping[str, Any] = document.get("config") or {}
    rows += [("seed", str(config["seed"]))] if config.get("seed") is not None else []
    rows += [(str(k), str(v)) for k, v in (document.get("versions") or {}).items()]
    rows += [("time of a run", device_line(t)) for t in (document.get("timing") or {}).get("targets") or ()]
    effort: Mapping[str, Any] = document.get("effort") or {}
    if effort.get("stages"):
        stages = " · ".join(f"{name} {duration(s)}" for name, s in effort["stages"].items())
        rows.append(("time", f"{duration(effort['seconds'])} ({stages})"))
    if effort.get("peak_memory_bytes"):
        rows.append(("peak memory", size(effort["peak_memory_bytes"])))
    rows += [(f"options from {where}", str(names)) for where, names in (document.get("sources") or {}).items()]
    return [*rows, ("written", str(document.get("created") or ""))]


def command_line(document: Document) -> str:
    """What was typed, quoted for a POSIX shell; "" for a call from Python."""
    return shlex.join(map(str, document.get("command") or ()))


def settings_rows(document: Document) -> Rows:
    """(option, value) of all that decided how the run went."""
    return [(str(k), _setting(v)) for k, v in (document.get("config") or {}).items() if v not in (None, [], ())]


def _setting(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def was_timed(document: Document) -> bool:
    """Whether models were timed: also where a gate on that stands against them."""
    return document["kind"] == "bench" and bool(document.get("models"))


def bench_rows(document: Document) -> Rows:
    """(model, median, p90, samples per second, file size) of each model that was timed."""
    return [
        (str(m["model"]), latency(m["median"]), latency(m["p90"]), count(m["throughput"]), size(m["bytes"]))
        for m in document["models"]
    ]


def bench_facts(document: Document) -> Rows:
    """(what, value) of how models were timed, and of how they compare."""
    rows: Rows = []
    compared = document.get("comparison")
    if compared:
        bounds = compared["interval"]
        interval = f" (95% interval in this run: {bounds[0]:.3f} to {bounds[1]:.3f})" if bounds else ""
        rows.append(("time of the second", f"{compared['ratio']:.3f} × that of the first{interval}"))
    rows.append(("measured", f"{document['rounds']} rounds, after {document['warmup']} to warm up"))
    inputs = ", ".join(f"{k} {_shape(v)}" for k, v in document["inputs"].items())
    rows.append(("inputs", f"{inputs} (batch {document['batch']}; {document['data']})"))
    return [*rows, ("run by", f"{document['library']}, {document['provider']}")]


def samples(n: int) -> str:
    """A number of samples in words."""
    return "1 sample" if n == 1 else f"{n} samples"
