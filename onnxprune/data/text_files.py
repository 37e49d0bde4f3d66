"""Lines of text: one in each line of a .txt, an object in each of a .jsonl, a row in each of a .csv or .tsv."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from onnxprune.data.tokenizer import Text
from onnxprune.errors import CalibrationError
from onnxprune.regular_files import opened

SUFFIXES = (".txt", ".jsonl", ".ndjson", ".csv", ".tsv")
LABEL = "label"
_MOST_OF_A_LINE, _MOST_LINES = 4 << 20, 50_000_000


@dataclass(frozen=True)
class Line:
    """A text, or two that belong together, and the class that stands beside it."""

    text: Text
    label: int | None = None


def lines(path: Path, keys: Sequence[str]) -> Iterator[Line]:
    """The texts of a file, empty lines left out.

    keys: the key, or two, of the text in an object or the column in a row. Raises CalibrationError.
    """
    if path.suffix not in SUFFIXES:
        raise CalibrationError(f"{path} holds no texts: give a file with one in each line ({', '.join(SUFFIXES)})")
    with opened(path, CalibrationError) as f:
        decoded = _decoded(f, path)
        if path.suffix in (".csv", ".tsv"):
            yield from _rows(decoded, path, keys)
        elif path.suffix == ".txt":
            yield from (Line(line.strip()) for line in decoded if line.strip())
        else:
            for number, line in enumerate(decoded, 1):
                if line.strip():
                    yield _of_json(line, f"{path}, line {number}", keys)


def _decoded(f: BinaryIO, path: Path) -> Iterator[str]:
    """The lines of a file in UTF-8."""
    for number in range(1, _MOST_LINES + 1):
        line = f.readline(_MOST_OF_A_LINE + 1)
        if not line:
            return
        if len(line) > _MOST_OF_A_LINE:
            raise CalibrationError(f"{path}, line {number} is longer than {_MOST_OF_A_LINE >> 20} MiB")
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as e:
            raise CalibrationError(f"{path}, line {number} is no text in UTF-8") from e
    raise CalibrationError(f"{path} has more than {_MOST_LINES:,} lines; give fewer")


def _of_json(line: str, where: str, keys: Sequence[str]) -> Line:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise CalibrationError(f"{where} is no JSON") from e
    if isinstance(value, str):
        return Line(value)
    if isinstance(value, dict):
        label = value.get(LABEL)
        return Line(_picked(value, where, keys), label if type(label) is int else None)
    raise CalibrationError(f"{where} is neither a text nor an object with one")


def _rows(decoded: Iterator[str], path: Path, keys: Sequence[str]) -> Iterator[Line]:
    try:
        for row in csv.DictReader(decoded, delimiter="\t" if path.suffix == ".tsv" else ","):
            label = str(row.get(LABEL) or "")
            text = _picked(row, f"{path}, a row", keys)
            yield Line(text, int(label) if label.isdecimal() and label.isascii() and len(label) < 10 else None)
    except csv.Error as e:
        raise CalibrationError(f"{path} is no table: {e}") from e


def _picked(values: dict[str, object], where: str, keys: Sequence[str]) -> Text:
    found = [values.get(k) for k in keys]
    missing = next((k for k, v in zip(keys, found, strict=True) if not isinstance(v, str)), None)
    if missing is not None:
        names = ", ".join(repr(str(k)) for k in list(values)[:10])
        raise CalibrationError(f"{where} has no text under {missing!r} but {names or 'nothing'}; name it (--text)")
    texts = [str(v) for v in found]
    return texts[0] if len(texts) == 1 else (texts[0], texts[1])
