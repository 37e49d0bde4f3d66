"""The document, made from the results alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from experiments.paper import figures, text_model, text_networks, text_practice, text_theory
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
    compared = [c for c in bar(records) if "resnet56" in c.network]
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
            f"They train with labels for tens or hundreds of epochs; a run here costs {cost}, and at half the MACs it "
            "loses more",
            "10",
        ),
        (
            "1: practical efficiency",
            "Seconds to minutes on two cores, stated in passes over the calibration samples",
            "10",
        ),
        (
            "2: long theory, little consequence; 2a, 2h: structure of the proof",
            "The exponential bound holds for a mixture only by comparison with a local run kept beside it",
            "3",
        ),
        (
            "2b: proof and intuition of theorem 1",
            f"Five lines with a ball in the hull; the rate measured is far above the bound{tight}",
            "1",
        ),
        (
            "2c: why does global win",
            "Here it does so with few units only: the better constant, not the better slope; with many local wins",
            "2",
        ),
        (
            "2d: inputs or outputs; scalars, vectors",
            f"The same{equal}, if removal is defined at the readers; table of symbols",
            "7, 8",
        ),
        ("2e: U_i and a_i = 0.3", "The lower end is -a/(1-a) = -0.43: it removes the unit; the other sign stalls", "8"),
        ("2f: memory and complexity", "O(N) per step after one pass that makes K; formulas and fitted exponents", "5"),
        (
            "2g: a and b",
            f"Both fold into the readers: a into weight columns, b into the bias unless the reader pads{fold}",
            "4",
        ),
        (
            "2i: batch normalization",
            "Not in what removal means; statistics measured anew repair most of a cut that nothing else has repaired",
            "6",
        ),
        (
            "2j: GFS's bound",
            f"A fixed step cannot have theorem 1{fixed}",
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


def render(records: Records, folder: Path) -> str:
    """The text; figures are drawn into `folder`/paper."""
    drawn: Mapping[str, str] = figures.draw(records, folder / "paper")
    sections = {
        1: text_theory.convergence(records, drawn),
        2: text_theory.alone(records),
        3: text_theory.combining(records, drawn),
        4: text_model.parameters(records),
        5: text_practice.scaling(records, drawn),
        6: text_model.batchnorm(records),
        7: text_model.equivalence(records),
        8: text_model.interval(records),
        9: text_practice.ablation(records),
        10: text_practice.efficiency(records),
        11: text_networks.networks(records),
    }
    parts = [
        "# Answers to the reviews, by measurement",
        "onnxprune implements *Greedy Optimization Provably Wins the Lottery: Logarithmic Number of Winning Tickets "
        "is Enough* (Mao Ye, Lemeng Wu, Qiang Liu, NeurIPS 2020, arXiv 2010.15969). Its four published reviews asked "
        "questions. Each is answered here by a measurement that can be repeated. Unfavourable results are stated as "
        "they were measured.",
        table(["review: point", "answer", "section"], points(records)),
        "Made by `python -m experiments.paper KIT --output docs` (with the extra `bench`; single sections with "
        "`--only`, smaller with `--quick`). KIT is a folder of trained models with calibration and test data: "
        "CIFAR-10 ResNet-20 and ResNet-56 (93.4 % published), an ImageNet MobileNetV2 and small MNIST networks, in "
        "ONNX; BatchNormalization is folded unless a table says otherwise. Calibration images are training images; "
        "every top-1 is on test images. Nothing was recovered behind the refit (`--fast`). Seed 0 unless a table says "
        "otherwise. Times were taken on two cores that "
        "other jobs used too; they bound, they do not compare.",
    ]
    for k, text in sections.items():
        parts += [f"## {k}. {TITLES[k]}", text]
    return "\n\n".join(wrapped(block) for part in parts for block in part.split("\n\n")) + "\n"


def write(records: Records, folder: Path) -> None:
    """`folder`/paper.md and its figures."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "paper.md").write_text(render(records, folder), encoding="utf-8")
