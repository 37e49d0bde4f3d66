"""The rows of a vocabulary that no listed text needs, as --keep-tokens says: gone before anything else is looked at."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from onnxprune.config import PruneConfig
from onnxprune.data.array_files import chunks
from onnxprune.data.samples import Samples
from onnxprune.errors import CalibrationError, UsageError
from onnxprune.graph import external, tensor_files
from onnxprune.intake import declarations, overridable
from onnxprune.stages.ports import RESIZE_IO, resized
from onnxprune.surgery.vocabulary import ListedTokens, without_others
from onnxprune.surgery.vocabulary_rows import inputs_of, kept_ids, vocabulary_of, why_none
from onnxprune.targets import settings_files

KEEP_TOKENS = "--keep-tokens"


@dataclass(frozen=True, eq=False)
class Listed:
    """The model that is pruned. tokens: None where none are listed, or nothing would be saved; notes: on what went."""

    model: onnx.ModelProto
    tokens: ListedTokens | None = None
    notes: tuple[str, ...] = ()

    def of_these(self, samples: Samples) -> Samples:
        """The samples, of listed tokens alone: random ones are made so. Raises CalibrationError for others."""
        return samples if self.tokens is None else _of_listed(samples, self.tokens)

    def declared_as(self, shapes: Mapping[str, tuple[int, ...]]) -> ListedTokens | None:
        """The same with all tokens declared as the model that is pruned: defaults are inputs, and outputs of the shapes
        that they have in a run of that model."""
        if self.tokens is None:
            return None
        whole, _ = overridable.as_inputs(self.tokens.whole)
        heads = {h.output: self.tokens.vocabulary.count for h in self.tokens.vocabulary.heads}
        given = {k: (*v[:-1], heads[k]) if k in heads else v for k, v in shapes.items()}
        return replace(self.tokens, whole=declarations.with_true_outputs(whole, given))


def listed_tokens(proto: onnx.ModelProto, settings: PruneConfig, *, whole: bool, replays: bool = False) -> Listed:
    """The model without rows of tokens that are not listed.

    whole: False where operators that onnxruntime does not know are behind the model: its outputs stay as they are then.
    replays: whether a plan lists them.
    Raises UsageError for a model without a vocabulary, and for logits that may change their size.
    """
    if not settings.keep_tokens:
        return Listed(proto)
    vocabulary = vocabulary_of(proto, heads=whole)
    if vocabulary is None and replays:
        raise UsageError(
            "the plan is of another model: it keeps some tokens of a vocabulary, and here is none; make a new plan"
        )
    if vocabulary is None:
        why = why_none(proto, heads=whole) or "here none does"
        raise UsageError(
            f"{KEEP_TOKENS} is about models whose input of token ids picks rows of a stored weight that nothing else "
            f"reads, and {why}: leave it out"
        )
    changing = sorted({h.output for h in vocabulary.heads} & set(resized(proto, settings.resize_io)))
    if changing:
        raise UsageError(
            f"{KEEP_TOKENS} leaves logits in their places, and {RESIZE_IO} matches {changing[0]!r}: leave that out"
        )
    tokens = without_others(proto, vocabulary, settings.keep_tokens)
    if tokens is None:
        listed = kept_ids(vocabulary, settings.keep_tokens).size
        why = "as tables of new rows would take more bytes than the rows that go"
        if listed == vocabulary.count:
            why = "as all of them are listed"
        return Listed(proto, notes=(f"{KEEP_TOKENS}: all {vocabulary.count} tokens stay, {why}",))
    narrow = tokens.narrow
    if external.embedded_bytes(narrow) >= external.LARGE_BYTES:
        narrow = tensor_files.outside(narrow)
    return Listed(narrow, tokens, (tokens.note,))


def doubts_of_special(tokens: ListedTokens | None, model: object) -> tuple[str, ...]:
    """What to warn of where a settings file beside a model names tokens that are not listed, such as the one that ends
    a text: the model would never give it."""
    if tokens is None or not isinstance(model, (str, os.PathLike)):
        return ()
    told = []
    for path in (Path(model).with_name(name) for name in settings_files.NAMES):
        own = settings_files.special_tokens(path) if path.is_file() else {}
        gone = {
            k: [str(i) for i in ids if i < tokens.vocabulary.count and i not in tokens.ids] for k, ids in own.items()
        }
        if any(gone.values()):
            named = ", ".join(f"{k} {'/'.join(ids)}" for k, ids in gone.items() if ids)
            told.append(
                f"{KEEP_TOKENS} does not list what {path.name} beside the model names: {named}; the result never gives "
                "these, and reads them as another token: list them too"
            )
    return tuple(told)


def _of_listed(samples: Samples, tokens: ListedTokens) -> Samples:
    inputs = [name for name in inputs_of(tokens.vocabulary) if name in samples.arrays]
    if samples.synthetic:
        made = {name: tokens.among_kept(np.asarray(samples.arrays[name][:])) for name in inputs}
        return replace(samples, arrays={**samples.arrays, **made})
    gone: set[int] = set()
    values = 0
    for name in inputs:
        for some in chunks(samples.arrays[name]):
            own = tokens.unlisted_in(some)
            gone.update(np.unique(own).tolist())
            values += own.size
    if gone:
        first = ", ".join(map(str, sorted(gone)[:5])) + (", …" if len(gone) > 5 else "")
        raise CalibrationError(
            f"{samples.origin} holds {len(gone)} tokens that {KEEP_TOKENS} does not list ({first}; {values} times): "
            "list them too, or calibrate on texts of listed tokens"
        )
    return samples


def told_of_vocabulary(proto: onnx.ModelProto, *, whole: bool) -> tuple[str, ...]:
    """What an inspection says of rows that could go."""
    vocabulary = vocabulary_of(proto, heads=whole)
    if vocabulary is None:
        return ()
    stored = {t.name: t for t in proto.graph.initializer}
    total = sum(external.bytes_of(stored[name]) for name, _ in vocabulary.rows)
    return (
        f"vocabulary: {vocabulary.named} store {vocabulary.count} tokens in {total} bytes; rows of those that no text "
        f"of yours needs go with {KEEP_TOKENS} FILE",
    )
