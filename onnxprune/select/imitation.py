"""Greedy local imitation (Ye, Wu & Liu, NeurIPS 2020, arXiv 2010.15969, equations 3 to 5).

A pruned layer is f_A = Σ_i a_i s_i with a ≥ 0, Σ a_i = 1, where s_i = N times the contribution of unit i, so that the
full layer is a_i = 1/N. Its discrepancy is D(A) = ||f_N - f_A||² = (u - a)ᵀ K̂ (u - a) with K̂ the Gram of the s_i and
u_i = 1/N. A step A ← (1 - γ) A + γ e_i takes the (i, γ) that minimises D jointly:
    γ* = clip(<f_N - f_A, s_i - f_A> / ||s_i - f_A||², U_i),   U_i = [-a_i / (1 - a_i), 1],
where the negative end removes unit i: a_i + γ (1 - a_i) = 0 there. O(N) per candidate set, one row of K̂ per step.
Oracle: exhaustive search over (i, γ) (tests).
"""

from __future__ import annotations

import numpy as np

from onnxprune.numerics.least_squares import JITTER
from onnxprune.select.path import Array, Ints, Path, in_turns

_NEGLIGIBLE = 1e-12


def steps(k: Array, count: int, *, removal: bool = True) -> tuple[Array, list[Array]]:
    """The first `count` greedy steps on K (N, N): discrepancies, and the coefficients a (N,) after each."""
    n = k.shape[0]
    gram = k * float(n) ** 2
    target = gram.mean(axis=1)  # <f_N, s_i>
    full = float(target.mean())  # ||f_N||²
    diagonal = np.diag(gram).copy()
    a = np.zeros(n)
    ga = np.zeros(n)  # gram @ a
    losses: list[float] = []
    history: list[Array] = []
    for step in range(count):
        fa_sq, fn_fa = float(a @ ga), float(target @ a)
        if step == 0:
            # The empty sum is no convex combination: the first step is γ = 1.
            gamma = np.ones(n)
            gain = full - 2 * target + diagonal
        else:
            inner = target - fn_fa - ga + fa_sq
            distance = np.maximum(diagonal - 2 * ga + fa_sq, 0.0)
            low = np.where(a < 1, -a / np.maximum(1 - a, _NEGLIGIBLE), 0.0) if removal else np.zeros(n)
            gamma = np.clip(inner / np.maximum(distance, 1e-300), low, 1.0)
            gain = (full - 2 * fn_fa + fa_sq) - 2 * gamma * inner + gamma**2 * distance
        i = int(np.argmin(gain))
        g = float(gamma[i])
        a = (1 - g) * a
        a[i] += g
        a[np.abs(a) < _NEGLIGIBLE] = 0.0
        ga = gram @ a if step % 64 == 0 else (1 - g) * ga + g * gram[:, i]
        losses.append(max(float(gain[i]), 0.0))
        history.append(a.copy())
    return np.array(losses), history


def imitate(k: Array, *, slack: int = 3, rows: Ints | None = None) -> Path:
    """The path of greedy imitation on K (N, N): for each size, the best support of that size that the greedy visits.

    Runs slack · N steps, as steps also rescale and remove. Sizes that were not visited take the support of the next
    smaller one, filled up with the units whose addition lowers the discrepancy most.

    rows: the balanced set of each unit, (N,). The greedy knows nothing of sets; the units that are in fewest of its
    supports then go first, one of each set in turn, and the loss is that of the free choice.
    """
    n = k.shape[0]
    losses, history = steps(k, slack * n)
    best: dict[int, tuple[float, Array]] = {0: (float(k.sum()), np.zeros(n))}
    for loss, a in zip(losses, history, strict=True):
        size = int(np.count_nonzero(a))
        if size not in best or loss < best[size][0]:
            best[size] = (float(loss), a)
    supports: dict[int, np.ndarray] = {}
    loss = np.zeros(n + 1)
    current = np.zeros(0, np.int64)
    for size in range(n + 1):
        if size in best:
            current = np.flatnonzero(best[size][1])
        while current.size < size:
            current = np.sort(np.append(current, _best_addition(k, current)))
        supports[size] = current
        loss[size] = best[size][0] if size in best else float("nan")
    loss[n] = 0.0
    missing = np.isnan(loss)
    loss[missing] = np.interp(np.flatnonzero(missing), np.flatnonzero(~missing), loss[~missing])
    # Keeping more can never be worse: a larger support may copy a smaller one.
    loss = np.minimum.accumulate(loss)
    importance = np.zeros(n)
    for s in supports.values():
        importance[s] += 1
    order = np.argsort(importance, kind="stable").astype(np.int64)
    return Path(order, loss, supports) if rows is None else Path(in_turns(order, rows), loss)


def _best_addition(k: Array, support: np.ndarray) -> int:
    """The unit outside `support` whose addition, with one free scale, lowers (1 - a)ᵀ K (1 - a) most."""
    outside = np.setdiff1d(np.arange(k.shape[0]), support)
    residual = k[np.ix_(outside, outside)].sum(axis=1)
    return int(
        outside[np.argmax(residual**2 / np.maximum(np.diag(k)[outside], JITTER * max(float(k.trace()), 1e-300)))]
    )
