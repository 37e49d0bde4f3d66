"""Texts to tokens, by the library tokenizers: the only user of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.errors import CalibrationError, UsageError
from onnxprune.numerics.arrays import Ints
from onnxprune.regular_files import content

if TYPE_CHECKING:
    import tokenizers

_MOST_BYTES = 512 << 20
# How vocabularies call what fills a text up.
_PADS = ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>")
# How those call what stands for the unknown that do not say so.
_UNKNOWN = ("<unk>", "[UNK]", "<|unk|>")

# One text, or two that belong together.
Text = str | tuple[str, str]


@dataclass(frozen=True, eq=False)
class Encoded:
    """One text: its tokens, and which of two texts each belongs to."""

    ids: Ints
    types: Ints


class Tokenizer:
    """A tokenizer.json. Raises CalibrationError where it is none, and UsageError without the library."""

    def __init__(self, path: str | os.PathLike[str], longest: int | None) -> None:
        try:
            from tokenizers import Tokenizer as Library
        except ImportError as e:
            raise UsageError(
                "texts are read by tokenizers, which is not installed: pip install 'onnxprune[text]'"
            ) from e
        text = content(path, CalibrationError, _MOST_BYTES)
        try:
            self._own: tokenizers.Tokenizer = Library.from_str(text.decode("utf-8"))
            self.most: int | None = longest or (self._own.truncation or {}).get("max_length")
            padding = self._own.padding or {}
            self._own.no_padding()
            self._own.no_truncation()
            if self.most is not None:
                self._own.enable_truncation(int(self.most))
        except Exception as e:  # the library's own errors have no class
            raise CalibrationError(f"{Path(path)} is no tokenizer.json: {' '.join(str(e).split())[:200]}") from e
        known = (self._own.token_to_id(p) for p in _PADS)
        self.pad: int = int(padding.get("pad_id", next((k for k in known if k is not None), 0)))
        self.left: bool = padding.get("direction") == "left"

    @property
    def unknown(self) -> int | None:
        """The token of what the vocabulary does not have; None without one."""
        name = getattr(self._own.model, "unk_token", None)
        names = [name] if name else list(_UNKNOWN)
        return next((int(k) for n in names if (k := self._own.token_to_id(n)) is not None), None)

    @property
    def special(self) -> set[int]:
        """The tokens that stand for no text: beginnings, ends, what fills up, what is unknown."""
        added = self._own.get_added_tokens_decoder()
        unknown = set() if self.unknown is None else {self.unknown}
        return {int(k) for k, token in added.items() if token.special} | {self.pad} | unknown

    def encoded(self, texts: Sequence[Text]) -> list[Encoded]:
        """The tokens of some texts, with those that the tokenizer adds, cut at its longest length."""
        made = self._own.encode_batch(list(texts))
        return [Encoded(np.array(e.ids, np.int64), np.array(e.type_ids, np.int64)) for e in made]
