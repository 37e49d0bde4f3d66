"""Settings files that lie beside a language model, and say how many heads and channels it has.

`genai_config.json` is onnxruntime-genai's: its decoder makes caches by the numbers that stand there. `config.json` is
that of Transformers. Both know one number for all layers.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import onnx

from onnxprune.errors import CheckFailed, InputError
from onnxprune.graph import bodies
from onnxprune.graph.operators import OWN_ATTENTION
from onnxprune.graph.protobuf import int_attribute
from onnxprune.regular_files import content

GENAI, TRANSFORMERS = "genai_config.json", "config.json"
NAMES = (GENAI, TRANSFORMERS)
_MOST_BYTES = 1 << 24
# How many layers there are, and the first of them from which on windows may be local.
_LAYERS, _WINDOWED = "num_hidden_layers", "max_window_layers"
# How many experts each mixture has: families have names of their own for it, and onnxruntime-genai none.
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
# What the names of special tokens end with.
_TOKEN = "_token_id"
_HEAD = {GENAI: "head_size", TRANSFORMERS: "head_dim"}


@dataclass(frozen=True)
class Numbers:
    """What such a file says of a model, under the names that it has there; None where it does not."""

    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    vocab_size: int | None = None
    head: int | None = None


@dataclass(frozen=True, eq=False)
class SettingsFile:
    """One of these files: its name, all that it says, and the numbers among it."""

    name: str
    document: dict[str, Any]
    numbers: Numbers

    def rewritten(
        self,
        new: Numbers,
        model: str,
        gone: Collection[int] = (),
        experts: Collection[tuple[int, int]] = (),
    ) -> bytes:
        """The file for a model with other numbers, in a file of that name. gone: the numbers of layers that went.
        experts: of each mixture, before and after."""
        document = json.loads(json.dumps(self.document))
        place = _place(self.name, document)
        for f in fields(Numbers):
            before, after = getattr(self.numbers, f.name), getattr(new, f.name)
            if f.name != "head" and after is not None and after != before:
                place[f.name] = after
        if new.head is not None and self.numbers != new:
            place[_HEAD[self.name]] = new.head
        if gone:
            _without_layers(place, gone)
        for key in _EXPERTS:
            left = {after for before, after in experts if before == place.get(key)}
            if len(left) == 1:
                place[key] = next(iter(left))
        if "filename" in place:
            place["filename"] = model
        return (json.dumps(document, indent=4, ensure_ascii=False) + "\n").encode()


def read(path: Path) -> SettingsFile:
    """One of these files. Raises InputError where it is none."""
    try:
        document = json.loads(content(path, InputError, _MOST_BYTES).decode("utf-8"))
    except (ValueError, RecursionError) as e:
        raise InputError(f"{path} is no settings file of a model: {' '.join(str(e).split())[:200]}") from e
    if not isinstance(document, dict):
        raise InputError(f"{path} is no settings file of a model: it holds no object")
    place = _place(path.name, document)
    values = {f.name: _count(place.get(f.name)) for f in fields(Numbers)}
    model = document.get("model")
    if isinstance(model, dict):
        values["vocab_size"] = values["vocab_size"] or _count(model.get("vocab_size"))
    heads, width = values["num_attention_heads"], values["hidden_size"]
    own = _count(place.get(_HEAD[path.name]))
    values["head"] = own or (width // heads if heads and width else None)
    return SettingsFile(path.name, document, Numbers(**values))


def special_tokens(path: Path) -> dict[str, tuple[int, ...]]:
    """The token ids that such a file gives a meaning, by the names that they have there (`eos_token_id`, …).

    Raises InputError where it is no such file.
    """
    file = read(path)
    inner = file.document.get("model")
    parts = [file.document, inner if isinstance(inner, dict) else {}, _place(file.name, file.document)]
    found: dict[str, tuple[int, ...]] = {}
    for key, value in (item for part in parts for item in part.items()):
        ids = value if isinstance(value, list) else [value]
        if key.endswith(_TOKEN) and ids and all(type(i) is int and i >= 0 for i in ids):
            found[key] = tuple(ids)
    return found


def _place(name: str, document: dict[str, Any]) -> dict[str, Any]:
    """The part of a document that is about the decoder."""
    inner: Any = document
    for key in ("model", "decoder") if name == GENAI else ("text_config",):
        if not isinstance(inner.get(key), dict):
            return inner if isinstance(inner, dict) else document
        inner = inner[key]
    found: dict[str, Any] = inner
    return found


def _without_layers(place: dict[str, Any], gone: Collection[int]) -> None:
    """Take layers, in place, from their count, from what has an entry for each, and from lists of their numbers."""
    layers = _count(place.get(_LAYERS))
    if layers is None or layers <= len(gone):
        return
    place[_LAYERS] = layers - len(gone)
    for key, value in place.items():
        if isinstance(value, list) and len(value) == layers:
            place[key] = [v for k, v in enumerate(value) if k not in gone]
    window = place.get("sliding_window")
    if isinstance(window, dict) and isinstance(window.get("layers"), list):
        window["layers"] = [k - sum(g < k for g in gone) for k in window["layers"] if k not in gone]
    first = _count(place.get(_WINDOWED))
    if first is not None:
        place[_WINDOWED] = first - sum(g < first for g in gone)


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def numbers_of(
    old: Numbers, original: onnx.ModelProto, result: onnx.ModelProto, caches: Mapping[str, tuple[int, int]]
) -> tuple[Numbers, tuple[str, ...]]:
    """The numbers of a cut model, and what cannot be said of it.

    caches: heads of each input and output that may change, before and after. Raises CheckFailed where the layers have
    different numbers of heads.
    """
    kv = {after for before, after in caches.values() if before == old.num_key_value_heads}
    heads = _heads(result) if _heads(original) == {old.num_attention_heads} else set[int]()
    for what, found in (("key/value heads in their caches", kv), ("query heads", heads)):
        if len(found) > 1:
            raise CheckFailed(
                f"the layers have {_listed(found)} {what}, and settings files beside the model know one number: keep "
                "them equal with --same-widths PATTERN; nothing was written"
            )
    pairs = _sizes(original, result)
    hidden = {b for (a, b) in _beside(pairs, old.vocab_size, old.hidden_size)}
    hidden = hidden or {after[0] for before, after in pairs if before == (old.hidden_size,)}
    inner = {after[0] for before, after in pairs if before == (old.intermediate_size, old.hidden_size)}
    said: tuple[str, ...] = ()
    if len(inner) > 1:
        said = (f"the feed-forward layers have different widths ({_listed(inner)}), and settings files know one",)
    query = _only(heads, old.num_attention_heads)
    if not heads and kv and old.num_attention_heads and old.num_key_value_heads:
        query = old.num_attention_heads * next(iter(kv)) // old.num_key_value_heads
    new = Numbers(
        num_attention_heads=query,
        num_key_value_heads=_only(kv, old.num_key_value_heads),
        hidden_size=_only(hidden, old.hidden_size),
        intermediate_size=_only(inner, old.intermediate_size),
        vocab_size=old.vocab_size,
        head=old.head,
    )
    return new, said


def _only(found: Collection[int], otherwise: int | None) -> int | None:
    return next(iter(found)) if len(found) == 1 else otherwise


def _listed(values: Collection[int]) -> str:
    return ", ".join(map(str, sorted(values)))


def _heads(proto: onnx.ModelProto) -> set[int]:
    """Query heads of the operators that have attention inside."""
    return {
        int_attribute(n, "num_heads" if n.op_type in OWN_ATTENTION else "q_num_heads", 0)
        for n in bodies.every_node(proto.graph)
        if n.op_type in OWN_ATTENTION or (n.op_type == "Attention" and n.domain == "" and len(n.attribute))
    } - {0}


def _sizes(original: onnx.ModelProto, result: onnx.ModelProto) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The shapes of every weight that both models have, before and after."""
    after = {t.name: tuple(t.dims) for t in result.graph.initializer}
    return [(tuple(t.dims), after[t.name]) for t in original.graph.initializer if t.name in after]


def _beside(
    pairs: Collection[tuple[tuple[int, ...], tuple[int, ...]]], vocabulary: int | None, hidden: int | None
) -> list[tuple[int, int]]:
    """Widths, before and after, that stand beside the vocabulary."""
    found: list[tuple[int, int]] = []
    for before, after in pairs:
        if sorted(before) == sorted((vocabulary or 0, hidden or 0)) and len(after) == len(before) == 2:
            axis = before.index(hidden or 0)
            found.append((before[axis], after[axis]))
    return found
