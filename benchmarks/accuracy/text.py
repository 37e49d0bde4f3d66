"""The small language model of benchmarks/decoder, judged by perplexity on files that were held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.accuracy.kits import Inputs
from benchmarks.decoder.compare import INPUT, MODEL, TOKENS, kept
from benchmarks.decoder.texts import LENGTH, sequences

FOLDER = "decoder"
FILE = f"{FOLDER}/{MODEL}"


def calib(made: Path, kit: Path, samples: int, seed: int) -> Inputs:
    """Token ids (N, T) of text that it was trained on."""
    del kit
    with np.load(made / FOLDER / TOKENS) as tokens:
        return {INPUT: sequences(tokens["learnt"], samples, seed, LENGTH)}


def judged(made: Path, kit: Path, pruned: Path) -> dict[str, float]:
    """Perplexity of both, and the share of tokens that stay, in percent."""
    del kit
    return kept(made / FOLDER, pruned)


def make(made: Path, kit: Path) -> None:
    """Train it, in about ten minutes of two cores; needs torch and tokenizers."""
    del kit
    from benchmarks.decoder.train import make

    make(made / FOLDER)
