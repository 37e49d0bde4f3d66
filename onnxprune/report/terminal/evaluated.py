"""An evaluation as text."""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.evaluation import Evaluation
from onnxprune.measures.by_output import OutputFigures
from onnxprune.measures.figures import change_of, percent
from onnxprune.measures.gates import Gate
from onnxprune.measures.verdict import verdict_of
from onnxprune.report.terminal.facts import gate_facts, output_facts, samples
from onnxprune.report.terminal.screen import Grid, Screen, line, listed, note
from onnxprune.report.visible import made_visible
from onnxprune.tasks.answered import SHARE, Score
from onnxprune.tasks.known import ASKED
from onnxprune.tasks.names import CLASSIFICATION


def evaluation(e: Evaluation, screen: Screen, gates: Sequence[Gate] = ()) -> str:
    """The figures of an evaluation, and what became of limits, as text."""
    e, gates = made_visible(e), made_visible(gates)
    facts = [("data", f"{e.data}, {samples(e.samples)}")]
    facts += [("prepared", e.prepared)] if e.prepared else []
    if e.task is not None:
        facts.append(("task", f"{e.task} ({e.task_why}" + (")" if e.task_why == ASKED else "; --task says otherwise)")))
    if e.accuracy is not None:
        facts.append(("top-1", percent(e.accuracy)))
    if e.original_accuracy is not None and e.drop is not None:
        change, points = change_of(e.drop)
        facts.append(("top-1 of the original", f"{percent(e.original_accuracy)} ({change}: {points} points)"))
    facts += [_score(x) for x in e.scores if x.name not in ("top-1", "agreement")]
    if e.agreement is not None and (e.task in (None, CLASSIFICATION)):
        facts.append(("agreement", f"{percent(e.agreement)} get the same class"))
    if e.figures is not None:
        figures = e.figures
        facts += output_facts(figures.error, figures.summary() | {"held_out": None}, figures.as_dicts())
        facts += _single_output(e.by_output)
        facts.append(("verdict", verdict_of(figures).text))
    facts += gate_facts(gates)
    title = e.model if e.against is None else f"{e.model} against {e.against}"
    table = [_by_output(e.by_output, screen)] if len(e.by_output) > 1 else []
    return screen.render(
        [line(title, "bold"), listed(facts, space=0 if table else 1), *table, *(note(n) for n in e.notes)]
    )


def _score(score: Score) -> tuple[str, str]:
    """A score and what it is, beside the original's by the same labels."""
    if score.value is None:
        return score.name, f"not measured ({score.why})"
    shown = percent if score.unit == SHARE else "{:.5g}".format
    original = "" if score.original is None else f" (original: {shown(score.original)})"
    return score.name, f"{shown(score.value)} {score.about}{original}"


def _single_output(outputs: Sequence[OutputFigures]) -> list[tuple[str, str]]:
    """What else is told of a single output; several have a table."""
    if len(outputs) != 1 or outputs[0].largest is None:
        return []
    facts = [("largest difference", f"{outputs[0].largest:.3g}")]
    return facts + ([] if outputs[0].cosine is None else [("cosine", f"{outputs[0].cosine:.4f}, a mean over samples")])


def _by_output(outputs: Sequence[OutputFigures], screen: Screen) -> Grid:
    table = screen.table("output", "error", "largest difference", "cosine", "agreement", title="outputs")
    for o in outputs:
        table.add_row(
            o.output,
            "-" if o.error is None else percent(o.error),
            "-" if o.largest is None else f"{o.largest:.3g}",
            "-" if o.cosine is None else f"{o.cosine:.4f}",
            "-" if o.agreement is None else percent(o.agreement),
        )
    return table
