"""A small vision transformer, trained on the digits of models/make_digits.py, judged by top-1 on their test split."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.accuracy.kits import Inputs, answers, chosen, load_module, scores

FOLDER = "vit"
FILE, _CALIB, _TEST = f"{FOLDER}/model.onnx", f"{FOLDER}/calib.npz", f"{FOLDER}/test.npz"
INPUT = "input"
_DIGITS = Path(__file__).resolve().parents[2] / "models" / "make_digits.py"


def calib(made: Path, kit: Path, samples: int, seed: int) -> Inputs:
    """Images (N, 1, 8, 8) that it was trained on."""
    del kit
    with np.load(made / _CALIB) as data:
        return {INPUT: chosen(data[INPUT], samples, seed)}


def judged(made: Path, kit: Path, pruned: Path) -> dict[str, float]:
    """Top-1 on images that it was not trained on."""
    del kit
    with np.load(made / _TEST) as data:
        test, labels = data[INPUT], data["label"]
    return scores(answers(made / FILE, test), answers(pruned, test), labels)


def make(made: Path, kit: Path) -> None:
    """Train it, in about two minutes; needs torch and scikit-learn. The model is written last."""
    del kit
    from benchmarks.accuracy.vit_training import export, trained

    digits = load_module(_DIGITS)
    learnt, _, test = digits.load_splits()
    (made / FOLDER).mkdir(parents=True, exist_ok=True)
    np.savez_compressed(made / _CALIB, **{INPUT: learnt.images})
    np.savez_compressed(made / _TEST, **{INPUT: test.images, "label": test.labels})
    export(trained(learnt.images, learnt.labels), made / FILE)
