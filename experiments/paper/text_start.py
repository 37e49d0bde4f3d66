"""What opens the document and closes it: where to start, what cannot be repeated here, and other routes to a small
network."""

from __future__ import annotations

from experiments.paper import bundled
from experiments.paper.markup import number
from experiments.paper.records import Records
from experiments.paper.scope import MOBILENET


def is_bundled(records: Records) -> bool:
    """Whether these are results of the models that come with the source."""
    rows = [k for section in records.data.values() for k in section]
    return any(k.startswith("digits_") for k in rows) and not any(k.startswith("cifar10_") for k in rows)


def start(records: Records) -> str:
    """Commands for a fresh clone, and how long they took."""
    times = records.section(bundled.SECTION)

    def took(name: str) -> str:
        if name not in times:
            return ""
        wall, used = (number(times[name][k]) for k in ("seconds", "processor"))
        return f"; {used} s of processor time, {wall} s by the clock while other jobs shared two cores"

    install = "pip install '.[bench]'"
    return "\n\n".join(
        [
            "From a clone, with nothing else (FOLDER is any folder; the models and their data are in `models/`):",
            f"- `{install}`\n"
            f"- `{bundled.PRUNE}`: one network cut to half of its MACs{took('prune')}.\n"
            f"- `{bundled.PAGE}`: this page, figures and all, reduced to two digit classifiers{took('page')}; less "
            "with `--quick`. Section 6 needs two exports of one network and stays empty.",
            "The page as it stands is made by `python -m experiments.paper KIT --output docs`, single sections with "
            "`--only`, smaller with `--quick`; it takes hours. KIT is a folder with `kit.py` "
            "(`for_model(path, split)` gives inputs and labels of `calib` and `test`) and `models/*.onnx`: CIFAR-10 "
            "ResNet-20 and ResNet-56 (93.4 % published), an ImageNet MobileNetV2 and small MNIST networks. It is not "
            "part of the source. What was measured with it is, row by row, in [`paper/results.json`]"
            "(paper/results.json), with seeds and numbers of samples; `python -m experiments.paper --only render "
            "--output docs` makes every figure, table and sentence with a number anew from that file alone. Seconds "
            "are by the clock, on two cores that other jobs used too, unless it says otherwise; they bound and do not "
            "compare.",
            "**What of the paper is not repeated here, and why.** Its tables of top-1 on ImageNet (ResNet, "
            "MobileNetV2 and MobileNetV3, by size) are of networks that were fine-tuned behind the cut: they need "
            "ImageNet's 1.28 million training images with labels, and by the defaults of the authors' code 150 epochs "
            "of training and two GPUs (section 10). Here there are some hundred images, no labels and two CPU cores. "
            "Its table of point clouds (DGCNN) needs ModelNet40 and training likewise. So no accuracy on this page "
            "can be held against one of the paper's. What can be repeated is everything in front of the fine-tuning: "
            "the steps, their rates, what they choose, and what a network is worth then, with a refit and without "
            "(sections 1 to 3, 9 and 11).",
        ]
    )


def routes(records: Records) -> str:
    """Distillation, design and search in a sentence each (review 1)."""
    section = records.section("distilled")
    distilled, cut = "", ""
    if section:
        before, after = section["none"], section["recovery"]
        distilled = (
            "; measured here, with the uncut network as the teacher, the same unlabelled samples and the pruned "
            "network as the student (`--recover`, the program's default; rows of `accuracy.md`), ResNet-56 at half its "
            f"MACs loses {after['mean']:.1f} ± {after['deviation']:.1f} points instead of "
            f"{before['mean']:.1f} ± {before['deviation']:.1f} "
            f"({len(after['seeds'])} seeds, {after['samples']:,} samples), for {number(after['passes'])} passes over "
            f"the samples instead of {number(before['passes'])}"
        )
    losses = [
        r["top1_before"] - r["top1"]
        for _, r in records.rows("ablation")
        if (r["network"], r["ratio"]) == (MOBILENET, 0.2)
    ]
    if losses:
        cut = f"; a cut of a trained MobileNetV2 by 20 % loses {min(losses):.1f} points at best (section 9)"
    return "\n\n".join(
        [
            "**The other routes in one sentence each** (review 1):",
            "- *Distillation* trains a given small network towards the outputs of a large one: 146 to 74 errors on "
            "MNIST for the same small network, the large one making 67 (Hinton et al. 2015, arXiv 1503.02531, section "
            f"3){distilled}. It is no rival of pruning but what follows it.\n"
            "- *Design* makes a better network by hand and trains it from nothing: MobileNetV2 has 300 million "
            "multiply-adds and 72.0 % top-1 on ImageNet where MobileNetV1 has 575 million and 70.6 % (Sandler et al. "
            f"2018, arXiv 1801.04381, table 4), both trained from nothing{cut}.\n"
            "- *Search* finds the design by machine and then trains it as well: from more than 20,000 trained networks "
            "to the cost of about one training (ProxylessNAS; sources in the table above), where pruning trains none "
            "and is bound to the layers of the network it is given.",
        ]
    )
