"""Cases by kind, each made by its seed alone, and what is wrong with how the command line ends on them.

A kind is a function that writes its files into an empty folder and says which commands run there: `KINDS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.fuzz import files, models
from tests.fuzz.commands import command, unlike
from tests.fuzz.seeds import seed_model
from tests.fuzz.workers import HANG_SECONDS, Worker

# How many mutations: mostly one, as a model that is broken twice hardly gets past the first check.
_MUTATIONS = (1, 1, 1, 1, 1, 2, 2, 3)
_SHARE_OF_BYTES, _SHARE_OF_GENTLE = 0.1, 0.6
_OPTIONS = (
    ("--ratio", "0.3"),
    ("--uniform", "0.5"),
    ("--ratio", "0.3", "--budget", "params"),
    ("--uniform", "0.4", "--method", "local"),
    ("--uniform", "0.4", "--method", "magnitude", "--refit", "least-squares"),
    ("--ratio", "0.3", "--attention", "head-dim", "--drop-branches"),
    ("--tolerance", "0.05"),
    ("--uniform", "0.4", "--method", "global"),
)


@dataclass(frozen=True)
class Case:
    """What was made, in words, and the commands; `model` and `output`: compared where the last one ends with 0."""

    story: str
    commands: tuple[tuple[str, ...], ...]
    model: Path
    output: Path


@dataclass(frozen=True)
class Verdict:
    """How a case ended.

    codes: of its commands, None where the process died. fault: empty where nothing is wrong. line: the last line on
    stderr. peak: bytes.
    """

    codes: tuple[int | None, ...]
    fault: str
    line: str
    seconds: float
    peak: int


def mutated_model(seed: int, folder: Path) -> Case:
    """A model with one to three mutations, or with damaged bytes."""
    rng = np.random.default_rng([1, seed])
    story, proto = seed_model(rng)
    names = sorted(models.MUTATORS)
    done: list[str] = []
    if rng.random() >= _SHARE_OF_BYTES:
        for _ in range(models.pick(rng, _MUTATIONS)):
            gentle = rng.random() < _SHARE_OF_GENTLE
            done.append(models.pick(rng, models.GENTLE).__name__ if gentle else models.pick(rng, names))
            models.MUTATORS[done[-1]](proto, rng)
        blob = proto.SerializeToString()
    else:
        done.append(models.pick(rng, sorted(models.BYTE_MUTATORS)))
        blob = models.BYTE_MUTATORS[done[-1]](proto.SerializeToString(), rng)
    models.beside(folder)
    model, output = folder / "model.onnx", folder / "out.onnx"
    model.write_bytes(blob)
    options = models.pick(rng, _OPTIONS)
    prune = (str(model), str(output), *options, "--round-to", "1", "--samples", "8", "--fast", "--quiet")
    look = ("inspect", str(model))
    commands = (look, prune) if rng.random() < 0.25 else (prune,)
    return Case(f"{story}: {', '.join(done)}", commands, model, output)


KINDS: Mapping[str, Callable[[int, Path], Case]] = {
    "models": mutated_model,
    "plans": lambda seed, folder: Case(*files.mutated_plan(seed, folder)),
    "data": lambda seed, folder: Case(*files.mutated_data(seed, folder)),
}


# What cases of a kind share, to be made before several threads make such cases.
SHARED: Mapping[str, Callable[[], None]] = {"plans": files.whole_plans}


def run(kind: str, seed: int, folder: Path, worker: Worker, seconds: float = HANG_SECONDS) -> tuple[Case, Verdict]:
    """Make a case in an empty folder, run it, and judge it; the folder keeps what the case consists of."""
    temporary = folder / "tmp"
    temporary.mkdir()
    case = KINDS[kind](seed, folder)
    before = _listed(folder)
    codes: list[int | None] = []
    line, fault, spent, peak = "", "", 0.0, 0
    for argv in case.commands:
        answer = worker.call(command, list(argv), str(temporary), seconds=seconds)
        codes.append(answer.value)
        spent, peak = max(spent, answer.seconds), max(peak, answer.peak)
        lines = [x for x in answer.stderr.splitlines() if not x.startswith("onnxprune: warning:")]
        line = lines[-1] if lines else ""
        fault = answer.died or answer.error or spoken(answer.value, lines, answer.stdout)
        fault = fault or left(case, before, folder, answer.value)
        if fault:
            break
    if not fault and codes[-1] == 0 and case.output.exists():
        compared = worker.call(unlike, str(case.model), str(case.output), seconds=seconds)
        fault = compared.died or compared.error or compared.value
    return case, Verdict(tuple(codes), fault, line, spent, peak)


def spoken(code: int | None, lines: list[str], stdout: str) -> str:
    """What is wrong with the exit code and the lines on stderr, warnings of our own left out."""
    for text in (*lines, stdout):
        if re.search(r"this is a defect|please report|Traceback \(most recent", text):
            return text.strip().splitlines()[-1]
    if code not in (0, 1, 2, 3, 4):
        return f"exit code {code}"
    wanted = 0 if code == 0 else 1
    if len(lines) != wanted:
        return f"{len(lines)} lines on stderr for exit code {code}: {lines[:1]}"
    if any(re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", x) for x in (*lines, *stdout.splitlines())):
        return "control characters in what is printed"
    return ""


def left(case: Case, before: set[str], folder: Path, code: int | None) -> str:
    """Files that nobody asked for."""
    new = _listed(folder) - before
    if code == 0:
        new = {f for f in new if not f.startswith("out.")}
    return f"left {', '.join(sorted(new))}" if new else ""


def _listed(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}
