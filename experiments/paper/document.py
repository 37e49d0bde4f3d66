"""The document, made from the results alone."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from experiments.paper import (
    figures,
    text_ablation,
    text_global,
    text_model,
    text_networks,
    text_practice,
    text_start,
    text_theory,
)
from experiments.paper.comparisons import bar
from experiments.paper.markup import number, table, wrapped
from experiments.paper.records import Records

TITLES = {
    1: "Convergence on real layers",
    2: "Does global imitation beat local imitation, and why",
    3: "What combining local and global steps does to the rate",
    4: "The ancillary parameters a and b",
    5: "Memory and complexity",
    6: "Batch normalization",
    7: "Pruning inputs, pruning outputs",
    8: "The interval U_i, and what is a scalar",
    9: "Taylor pruning, GFS, and an ablation at equal MACs",
    10: "Practical efficiency",
    11: "The paper's networks through every method",
}


def points(records: Records) -> list[tuple[str, str, str]]:
    """(reviewer's point, answer in one sentence, section)."""
    parameters = [r["difference"] for _, r in records.rows("parameters")]
    same = [r["cut_against_inputs"] for _, r in records.rows("equivalence")]
    compared = [c for c in bar(records) if "resnet56" in c.cell.network]
    held = sum(c.holds for c in compared)
    bound = [r["measured"] / r["bound"] for _, r in records.rows("constants") if r["bound"] and r["measured"]]
    fold = f"; the written model equals the gated one to {number(max(parameters))}" if parameters else ""
    equal = f" to {number(max(same))}" if same else ""
    tight = f" ({number(min(bound))} to {number(max(bound))} times)" if bound else ""
    epochs = text_practice.epochs_of(records)
    cost = f"at most {number(max(epochs))} epochs' worth of passes on ResNet-56" if epochs else "a few passes"
    n, of = text_theory.facts_of_steps(records)["gfs"]
    fixed = f"; by steps the exponential fits GFS best in {n} of {of} layers only" if of else ""
    outcome = (
        f"; combined is within 0.5 points of the better of the two in {held} of {len(compared)} comparisons on "
        "ResNet-56"
        if compared
        else ""
    )
    return [
        (
            "1: compare with distillation, design, NAS",
            f"One sentence and a figure each; they train for tens or hundreds of epochs, a run here costs {cost}",
            "10",
        ),
        (
            "1: practical efficiency",
            "Seconds to minutes on two cores, stated in passes over the calibration samples",
            "10",
        ),
        (
            "2: long theory, little consequence; 2a, 2h: structure of the proof",
            "Lemmas 1 to 6; exponential for the better of two runs that are kept apart, unproved for steps that are "
            "mixed",
            "1, 3",
        ),
        (
            "2b: proof and intuition of theorem 1",
            f"Stated with its assumptions and proved in three lemmas; the rate measured is far above the bound{tight}",
            "1",
        ),
        ("2c: why does global win", text_global.sentence(records), "2"),
        (
            "2d: inputs or outputs; scalars, vectors",
            f"The same{equal}, if removal is defined at the readers; table of symbols",
            "7, 8",
        ),
        ("2e: U_i and a_i = 0.3", "The lower end is -a/(1-a) = -0.43: it removes the unit; the other sign stalls", "8"),
        ("2f: memory and complexity", "O(N) per step after one pass that makes K; formulas and fitted exponents", "5"),
        (
            "2g: a and b",
            "No parameters of networks, none left in the written model; a folds into weight columns, b into the bias "
            f"unless the reader pads{fold}",
            "4",
        ),
        (
            "2i: batch normalization",
            "Not in what removal means; statistics measured anew repair most of a cut that nothing else has repaired",
            "6",
        ),
        (
            "2j: GFS's bound",
            f"1/n² from above and, but at multiples of N, from below: no exponential, and not too loose{fixed}",
            "1, 9",
        ),
        ("2k: Molchanov's Taylor", "The diagonal of our gate Gram at the full network; we use the whole matrix", "9"),
        (
            "3: limits of Ye et al. (2020), related methods",
            "Nothing taken back, fixed steps, equal coefficients; the relations one by one",
            "9",
        ),
        ("3: why is the theoretical gain small in practice", text_theory.sentence_rates(records), "1"),
        (
            "3: reproducibility",
            "Everything here is one command; results, seeds and sizes are in `paper/results.json`",
            "below",
        ),
        (
            "4: combination and convergence rate",
            "Step by step the mixture takes mostly global steps and walks at their rate, the slower one",
            "3",
        ),
        (
            "4: is Lipschitz continuity tight enough",
            "It plays no part in the layer's rate; carried to the outputs it is loose, as the ratio varies along one "
            "path",
            "1, 2",
        ),
        ("4: ablation against GFS", f"Methods times refits at equal MACs{outcome}", "9"),
    ]


def made(records: Records) -> str:
    """What the figures of the page are of."""
    if text_start.is_bundled(records):
        return (
            "**This page is reduced**: it was made by `python -m experiments.paper --bundled` from two digit "
            "classifiers and 256 calibration images. Sentences that name other networks speak of the full page."
        )
    return (
        "BatchNormalization is folded unless a table says otherwise. Calibration images are training images; every "
        "top-1 is on test images. Nothing was recovered behind the refit (`--fast`) but where it is said. Seed 0 "
        "unless a table says otherwise."
    )


def render(records: Records) -> str:
    """The text, which names the figures."""
    drawn: Mapping[str, str] = figures.names(records)
    sections = {
        1: text_theory.convergence(records, drawn),
        2: "\n\n".join([text_global.alone(records), text_global.kept(records)]),
        3: text_theory.combining(records, drawn),
        4: text_model.parameters(records),
        5: text_practice.scaling(records, drawn),
        6: text_model.batchnorm(records),
        7: text_model.equivalence(records),
        8: text_model.interval(records),
        9: text_ablation.ablation(records),
        10: "\n\n".join([text_practice.efficiency(records), text_start.routes(records)]),
        11: text_networks.networks(records),
    }
    parts = [
        "# Answers to the reviews, by measurement",
        "onnxprune implements *Greedy Optimization Provably Wins the Lottery: Logarithmic Number of Winning Tickets "
        "is Enough* (Mao Ye, Lemeng Wu, Qiang Liu, NeurIPS 2020, arXiv 2010.15969). Its four published reviews asked "
        "questions. Each is answered here by a measurement that can be repeated. Unfavourable results are stated as "
        "they were measured.",
        table(["review: point", "answer", "section"], points(records)),
        made(records),
        "## Start here",
        text_start.start(records),
    ]
    for k, text in sections.items():
        parts += [f"## {k}. {TITLES[k]}", text]
    return "\n\n".join(wrapped(block) for part in parts for block in part.split("\n\n")) + "\n"


def write(records: Records, folder: Path) -> None:
    """`folder`/paper.md and its figures; without matplotlib the text alone."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "paper.md").write_text(render(records), encoding="utf-8")
    try:
        figures.draw(records, folder / "paper")
    except ImportError:
        print("no matplotlib, so no figures: pip install '.[bench]'", file=sys.stderr)
