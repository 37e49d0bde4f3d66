"""Rates fitted to a falling curve: 1/n, 1/n² (one constant each), exp(-cn) and n^-p (two each)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

# Relative to the largest point: what lies below is rounding of float32 activations, or units that never were of use.
FLOOR = 1e-6
RATES = ("1/n", "1/n²", "exp(-cn)", "n^-p")


def fitted(n: Sequence[float], d: Sequence[float], floor: float = FLOOR) -> dict[str, Any]:
    """By rate: log10 of the constant, the exponent (c per unit, or p), and the root mean square residual in decades.

    n, d: equally long, n ascending and above 0. Points at or below `floor` times the largest d do not count. `best`:
    the rate with the least residual; of the two with one constant and the two with two, each counts for itself.
    """
    x, y = np.asarray(n, float), np.asarray(d, float)
    use = np.isfinite(y) & (y > floor * np.nanmax(y)) & (y > 0)
    x, y = x[use], np.log10(y[use])
    found: dict[str, Any] = {"points": int(use.sum())}
    if use.sum() < 4:
        return found
    for name, power in (("1/n", 1.0), ("1/n²", 2.0)):
        rest = y + power * np.log10(x)
        found[name] = {"constant": float(rest.mean()), "exponent": power, "residual": float(rest.std())}
    for name, z in (("exp(-cn)", x), ("n^-p", np.log10(x))):
        slope, constant = np.polyfit(z, y, 1)
        residual = float(np.sqrt(np.mean((y - constant - slope * z) ** 2)))
        exponent = -float(slope) * (np.log(10.0) if name == "exp(-cn)" else 1.0)
        found[name] = {"constant": float(constant), "exponent": float(exponent), "residual": residual}
    found["best"] = min(RATES, key=lambda r: found[r]["residual"])
    return found


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """p of y ~ x^p by least squares on logarithms."""
    return float(np.polyfit(np.log(np.asarray(x, float)), np.log(np.asarray(y, float)), 1)[0])
