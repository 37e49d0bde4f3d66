"""Lists of tokens: ids in arrays, or texts with their tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxprune.data.token_lists import tokens_of
from onnxprune.errors import CalibrationError, UsageError

WORDS = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "a": 4, "b": 5, "c": 6, "d": 7}


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    tokenizers = pytest.importorskip("tokenizers")
    own = tokenizers.Tokenizer(tokenizers.models.WordLevel(WORDS, unk_token="[UNK]"))
    own.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    own.add_special_tokens(["[CLS]", "[SEP]"])
    own.enable_truncation(1)
    own.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_arrays_list_all_their_values(tmp_path: Path):
    np.save(tmp_path / "ids.npy", np.array([[9, 4], [4, 7]], np.int32))
    np.savez(tmp_path / "ids.npz", train=np.array([5, 9]), test=np.array(2, np.uint8))
    np.savez(tmp_path / "data.npz", input_ids=np.array([5, 9]), attention_mask=np.ones(2, int))
    assert tokens_of(tmp_path / "data.npz") == (5, 9)
    assert tokens_of(tmp_path / "ids.npy") == (4, 7, 9)
    assert tokens_of(tmp_path / "ids.npz") == (2, 5, 9)


def test_texts_list_their_tokens_and_the_special_ones(tmp_path: Path, tokenizer: Path):
    """Fails where a text is cut, or a special token is left out; what is unknown stands in for the others."""
    (tmp_path / "texts.txt").write_text("a b\n\nb d\n", encoding="utf-8")
    assert tokens_of(tmp_path / "texts.txt", tokenizer) == (3, 0, 1, 2, 4, 5, 7)
    (tmp_path / "texts.jsonl").write_text('{"said": "c"}\n', encoding="utf-8")
    assert tokens_of(tmp_path / "texts.jsonl", tokenizer, "said") == (3, 0, 1, 2, 6)
    np.save(tmp_path / "ids.npy", np.array([7]))
    assert tokens_of(tmp_path / "ids.npy", tokenizer) == (3, 0, 1, 2, 7)


def test_what_lists_nothing_is_refused(tmp_path: Path, tokenizer: Path):
    (tmp_path / "texts.txt").write_text("a\n", encoding="utf-8")
    (tmp_path / "none.txt").write_text("\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"give it with --tokenizer"):
        tokens_of(tmp_path / "texts.txt")
    with pytest.raises(CalibrationError, match=r"holds no text"):
        tokens_of(tmp_path / "none.txt", tokenizer)
    for values, why in (
        (np.array([0.5]), "as integers"),
        (np.array([-1, 3]), "from -1 to 3"),
        (np.zeros(0, int), "no"),
    ):
        np.save(tmp_path / "ids.npy", values)
        with pytest.raises(CalibrationError, match=why):
            tokens_of(tmp_path / "ids.npy")
