"""Report files: the suffix of a name says which form of the report it gets."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnxprune.errors import OnnxPruneError, RunError, UsageError
from onnxprune.output.commit import Stage
from onnxprune.report.document import Document, Outcome, document_of, to_json
from onnxprune.report.junit import junit
from onnxprune.report.markdown import markdown
from onnxprune.report.page import html

ReportFiles = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None
FORMS: Mapping[str, tuple[str, Callable[[Document], str]]] = {
    ".json": ("everything, as JSON", to_json),
    ".html": ("a page to look at and to show around", html),
    ".htm": ("the same", html),
    ".md": ("a summary in Markdown", markdown),
    ".xml": ("JUnit XML, a case for each check and gate", junit),
}
# Bytes at the front of a report, of any form, that have the program's name in them.
_HEAD = 4096


@dataclass(frozen=True)
class Reports:
    """The files that a report shall be in, each by its suffix. overwrite: whether they may exist."""

    paths: tuple[Path, ...]
    overwrite: bool = False

    @classmethod
    def of(cls, files: ReportFiles, *, overwrite: bool = False) -> Reports:
        """Sort out what was given: one name, several, or None. Raises UsageError for a suffix of no form."""
        given = [] if files is None else [files] if isinstance(files, (str, os.PathLike)) else list(files)
        paths = tuple(map(Path, given))
        for path in paths:
            form_of(path)
        return cls(paths, overwrite)

    def put(self, stage: Stage, document: Document) -> None:
        """Store the document in every file, under temporary names. Raises RunError."""
        for path in self.paths:
            stage.put(path, rendered(document, path))

    def save(self, document: Document) -> None:
        """Write all files at once, or none. Raises RunError."""
        with Stage(overwrite=self.overwrite) as stage:
            self.put(stage, document)
            stage.commit()

    def save_refusal(self, document: Document) -> None:
        """Write the files of a run that was refused, but for those that exist and are no earlier reports.

        A command that is refused may name anything there, the model's own weights too. Raises RunError, also for such a
        file.
        """
        others = [p for p in self.paths if not _free(p)]
        replace(self, paths=tuple(p for p in self.paths if p not in others)).save(document)
        if others:
            raise RunError(f"{others[0]} is no earlier report, and stays")


def _free(path: Path) -> bool:
    """Whether there is nothing at a path, or a report. Where that cannot be told, who writes there says why."""
    try:
        with path.open("rb") as f:
            return b"onnxprune" in f.read(_HEAD)
    except (OSError, ValueError):
        return True


@contextmanager
def keeping(
    reports: Reports, kind: str, subject: Mapping[str, Any], command: Sequence[str] = ()
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Save the report of what is done inside, which tells its data; also where an error ends it, with the reason.

    subject: what is known beforehand. Raises RunError.
    """
    data = dict(subject)
    with keeping_refusals(reports, kind, data, command):
        yield data.update
    if reports.paths:
        reports.save(document_of(kind, data, Outcome(), command))


@contextmanager
def keeping_refusals(
    reports: Reports, kind: str, data: Mapping[str, Any], command: Sequence[str] = ()
) -> Iterator[None]:
    """Save what is known by then as a report where an error ends what is done inside, with the reason."""
    try:
        yield
    except OnnxPruneError as error:
        if reports.paths:
            with suppress(RunError):  # what stopped the run is worse
                reports.save_refusal(document_of(kind, data, Outcome.of(error), command))
        raise


def form_of(path: Path) -> Callable[[Document], str]:
    """What makes the form that a suffix stands for. Raises UsageError for another suffix."""
    row = FORMS.get(path.suffix.lower())
    if row is None:
        forms = "; ".join(f"{suffix}: {what}" for suffix, (what, _) in FORMS.items())
        raise UsageError(f"a report is called by its form, {path.name!r} by none: {forms}")
    return row[1]


def rendered(document: Document, path: Path) -> bytes:
    """The bytes of the form that a file's suffix stands for."""
    return form_of(path)(document).encode("utf-8", "backslashreplace")
