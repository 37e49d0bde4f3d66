"""The sentence encoder all-MiniLM-L6-v2, which the kit's `text.py` exports, calibrates and measures.

Its test is the kit's own: the squared error of the embeddings over their spread, the cosine with the original's, and
how many of each text's nearest neighbours, one or ten, stay the nearest.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.accuracy.kits import Inputs, chosen, load_module

FILE = "minilm.onnx"
_CALIB, _TEST = "data/text_calib.npz", "data/text_test.npz"
NEEDS = ("text.py", _CALIB, _TEST)


def calib(made: Path, kit: Path, samples: int, seed: int) -> Inputs:
    """Token ids and masks, each (N, T)."""
    del made
    with np.load(kit / _CALIB) as data:
        return {k: chosen(v, samples, seed) for k, v in data.items()}


def judged(made: Path, kit: Path, pruned: Path) -> dict[str, float]:
    """The kit's measures; shares in percent."""
    found = load_module(kit / "text.py").measure(str(pruned), str(made / FILE), kit / _TEST)
    shares = {k: 100 * float(found[k]) for k in ("nearest", "nearest10")}
    return {"output_error": float(found["error"]), "cosine": float(found["cosine"])} | shares


def make(made: Path, kit: Path) -> None:
    """Export it; the kit's script needs torch, transformers and the package that ships the weights."""
    part = made / f"{FILE}.part"
    subprocess.run([sys.executable, str(kit / "text.py"), "export", str(part)], check=True)
    part.replace(made / FILE)
