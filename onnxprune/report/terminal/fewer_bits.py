"""What became of a model that is stored in fewer bits, as lines, and the report of `quantize` as text."""

from __future__ import annotations

from dataclasses import asdict

from onnxprune.measures.figures import percent
from onnxprune.report.quantized import QuantizeReport
from onnxprune.report.summary import FewerBitsRow
from onnxprune.report.terminal.facts import gate_facts, output_facts, ratio_of_times, samples
from onnxprune.report.terminal.screen import Part, Screen, line, listed, note
from onnxprune.report.units import duration
from onnxprune.report.view import fewer_bits_rows, refusals
from onnxprune.report.visible import made_visible


def fewer_bits_facts(row: FewerBitsRow) -> list[tuple[str, str]]:
    """How the model was stored in fewer bits, and what each step cost."""
    return fewer_bits_rows({"fewer_bits": asdict(row)})


def quantize_report(report: QuantizeReport, screen: Screen) -> str:
    """The report of a run of `quantize` as text."""
    report = made_visible(report)
    row = report.fewer_bits
    parts: list[Part] = [line(f"{report.model} in {row.precision}", "bold")]
    facts = fewer_bits_facts(row)
    facts += output_facts(report.output_error, report.error, report.outputs)
    if report.agreement is not None:
        facts.append(("agreement", f"{percent(report.agreement)} get the same class"))
    facts.append(("verdict", str(report.verdict["text"])))
    facts.append(("input sizes run", str(report.checks["input_sizes_run"])))
    if report.checks.get("tensorrt") is not None:
        facts.append(("TensorRT's parser", refusals(report.checks["tensorrt"])))
    if report.latency is not None:
        b = report.latency
        spread = ratio_of_times(float(b["comparison"]["ratio"]), b["comparison"]["interval"])
        facts.append(
            ("latency", f"{spread} of the original's, median of {b['rounds']} rounds in turns, {b['library']}")
        )
    facts += gate_facts(report.gates)
    c = report.calibration
    facts.append(("calibration", f"{c['origin']}: {samples(c['samples'])}, {c['held_out']} of them held out"))
    facts += [("prepared", c["prepared"])] if c.get("prepared") else []
    facts.append(("time", duration(report.seconds)))
    parts.append(listed(facts))
    parts += [line(f"warning: {w}", "bold yellow") for w in report.warnings]
    parts += [note(n) for n in report.notes]
    if report.files:
        parts.append(line(f"written: {', '.join(report.files)}", "bold green"))
    return screen.render(parts)
