"""Timings as text: how long models take, and where the time goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from onnxprune.benchmark.measure import Bench, Latency
from onnxprune.benchmark.profile import NodeTime, by_operator
from onnxprune.measures.gates import Gate
from onnxprune.report.terminal.facts import gate_facts, in_threads, ratio_of_times
from onnxprune.report.terminal.screen import Grid, Part, Screen, line, listed, note
from onnxprune.report.units import count, duration, latency, size
from onnxprune.report.visible import made_visible

_SHOWN_NODES = 10


def benchmark(b: Bench, screen: Screen, gates: Sequence[Gate] = ()) -> str:
    """The timings of one model or two, as text: how long they take, where the time goes, what became of limits."""
    b, gates = made_visible(b), made_visible(gates)
    names = [f"[{i}]" for i in range(1, len(b.models) + 1)] if len(b.models) > 1 else [""]
    parts: list[Part] = [line(f"{n} {x.model}".lstrip(), "bold") for n, x in zip(names, b.models, strict=True)]
    table = screen.table("", *(n or " " for n in names))
    rows: list[tuple[str, Callable[[Latency], str]]] = [
        ("median", lambda x: latency(x.median)),
        ("p90", lambda x: latency(x.p90)),
        ("samples per second", lambda x: count(x.throughput)),
        ("file size", lambda x: size(x.bytes)),
        ("engine built in" if b.provider == "tensorrt" else "session started in", lambda x: duration(x.start)),
    ]
    for name, text in rows:
        table.add_row(name, *map(text, b.models))
    parts += [table, listed(_bench_facts(b) + gate_facts(gates))]
    if any(x.nodes for x in b.models):
        parts += [_operators(b.models, names, screen), *_slowest(b.models, names, screen)]
    return screen.render([*parts, *(note(n) for n in b.notes)])


def _bench_facts(b: Bench) -> list[tuple[str, str]]:
    facts: list[tuple[str, str]] = []
    if b.comparison is not None:
        c = b.comparison
        facts.append(("time of [2]", f"{ratio_of_times(c.ratio, c.interval)} that of [1]"))
        facts.append(("", f"half of the rounds: {c.quartiles[0]:.3f} to {c.quartiles[1]:.3f}"))
        if not c.clear:
            facts.append(("", "too close, or too noisy, to tell the models apart; more --seconds narrow the interval"))
    turns = "rounds, in turns" if len(b.models) > 1 else "runs"
    facts.append(("measured", f"{b.rounds} {turns}, after {b.warmup} to warm up"))
    inputs = ", ".join(f"{k} {'x'.join(map(str, v)) or 'scalar'}" for k, v in b.inputs.items())
    facts.append(("inputs", f"{inputs} (batch {b.batch}; {b.data})"))
    types = "" if b.precision == "model" else f", a copy in {b.precision}"
    facts.append(("run by", f"{b.library}, {b.provider}{in_threads(b.threads)}{types}"))
    return facts


def _operators(models: Sequence[Latency], names: Sequence[str], screen: Screen) -> Grid:
    """Time per operator, that of the models beside each other."""
    columns = [f"{c} {n}".rstrip() for n in names for c in ("time", "share", "calls")]
    table = screen.table("operator", *columns, title="operators")
    times = [{o.operator: o for o in by_operator(x.nodes)} for x in models]
    for op in _slowest_first([{k: o.seconds for k, o in x.items()} for x in times]):
        row: list[str] = []
        for x in times:
            o = x.get(op)
            row += [latency(o.seconds), f"{o.share:.1%}", f"{o.calls:.4g}"] if o else ["", "", ""]
        table.add_row(op, *row)
    return table


def _slowest(models: Sequence[Latency], names: Sequence[str], screen: Screen) -> list[Part]:
    """The nodes that take longest; of two models those with the same name in one row."""
    table = screen.table("node", " operator", *(f"time {n}".rstrip() for n in names), title="slowest nodes")
    times: list[dict[str, NodeTime]] = [{n.name: n for n in x.nodes} for x in models]
    order = _slowest_first([{k: n.seconds for k, n in x.items()} for x in times])
    for name in order[:_SHOWN_NODES]:
        rows = [x.get(name) for x in times]
        operator = next(n.operator for n in rows if n is not None)
        table.add_row(name, operator, *(latency(n.seconds) if n else "" for n in rows))
    more = len(order) - _SHOWN_NODES
    return [table, *([line(f"and {more} more\n")] if more > 0 else [])]


def _slowest_first(seconds: Sequence[Mapping[str, float]]) -> list[str]:
    names = dict.fromkeys(k for x in seconds for k in x)
    return sorted(names, key=lambda k: -max(x.get(k, 0.0) for x in seconds))
