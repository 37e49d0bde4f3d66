"""Files of texts: every token against a vocabulary by hand, and lines that are not what they should be."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import Texts
from onnxprune.__main__ import main
from onnxprune.data.accepted import Wanted
from onnxprune.data.inputs import InputSpec
from onnxprune.data.sources import given
from onnxprune.errors import CalibrationError, UsageError

tokenizers = pytest.importorskip("tokenizers")

WORDS = {"[PAD]": 7, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "a": 4, "b": 5, "c": 6}
LINES = ["a b", "", "c", "a b c a b c a", "d"]


def tokenizer(folder: Path, *, pads: bool = True) -> Path:
    """A tokenizer of words with [CLS] in front and [SEP] behind, as BERT's."""
    own = tokenizers.Tokenizer(tokenizers.models.WordLevel(WORDS, unk_token="[UNK]"))
    own.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    own.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    if not pads:
        own.enable_padding(direction="left", pad_id=3, pad_token="[UNK]", length=16)
    own.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def ids_of(text: str, length: int, *, left: bool = False, pad: int = 7) -> tuple[list[int], list[int]]:
    """(ids, mask) by hand."""
    inner = [WORDS.get(w, 3) for w in text.split()][: length - 2]
    ids = [1, *inner, 2]
    fill = length - len(ids)
    mask = [1] * len(ids)
    return ([pad] * fill + ids, [0] * fill + mask) if left else (ids + [pad] * fill, mask + [0] * fill)


def specs(length: int | None = None, batch: int | None = None, *names: str, dtype: Any = np.int64) -> Any:
    names = names or ("input_ids", "attention_mask", "token_type_ids")
    return tuple(InputSpec(n, np.dtype(dtype), (batch, length), symbols=("N", "L")) for n in names)


def text_file(folder: Path, *lines: str, name: str = "t.txt") -> Path:
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / name


@pytest.mark.parametrize(("length", "want"), [(None, 9), ("longest", 9), (5, 5), (12, 12)])
@pytest.mark.parametrize("left", [False, True])
def test_tokens(length: Any, want: int, left: bool, tmp_path: Path):
    """Fails where a token, a mask, a side or the cut is another than by hand."""
    source = Texts(text_file(tmp_path, *LINES), tokenizer(tmp_path, pads=not left), length)
    feeds = given(source, specs()).slice(0, 4)
    by_hand = [ids_of(t, want, left=left, pad=3 if left else 7) for t in LINES if t]
    assert feeds["input_ids"].tolist() == [i for i, _ in by_hand]
    assert feeds["attention_mask"].tolist() == [m for _, m in by_hand]
    assert not feeds["token_type_ids"].any()


def test_what_the_model_declares(tmp_path: Path):
    """Fails where the length, the type or the names of the model's inputs do not decide."""
    source = Texts(text_file(tmp_path, *LINES), tokenizer(tmp_path))
    fixed = given(source, specs(6, None, "input_ids:0", "input_mask:0", dtype=np.int32)).slice(0, 4)
    assert fixed["input_ids:0"].tolist() == [ids_of(t, 6)[0] for t in LINES if t]
    assert fixed["input_mask:0"].dtype == np.int32
    floats = (*specs(None, None, "input_ids", "position_ids"), *specs(None, None, "attention_mask", dtype=np.float32))
    feeds = given(source, floats).slice(0, 1)
    assert feeds["attention_mask"].tolist() == [[1.0] * 4 + [0.0] * 5]
    assert feeds["position_ids"].tolist() == [[0, 1, 2, 3, 3, 3, 3, 3, 3]]
    assert given(source, specs(None, 2, "anything")).per_run == 2
    with pytest.raises(CalibrationError, match="the model wants 6 tokens, not 5"):
        given(Texts(source.path, source.tokenizer, 5), specs(6))


def test_pairs_and_labels(tmp_path: Path):
    """Fails where two texts are not told apart, or classes beside them are lost."""
    own = tokenizer(tmp_path)
    rows = [{"q": "a", "r": "b c", "label": 1}, {"q": "c c", "r": "a", "label": 0}]
    made = [
        text_file(tmp_path, *map(json.dumps, rows), name="t.jsonl"),
        text_file(tmp_path, "q,r,label", "a,b c,1", "c c,a,0", name="t.csv"),
        text_file(tmp_path, "q\tr\tlabel", "a\tb c\t1", "c c\ta\t0", name="t.tsv"),
    ]
    for path in made:
        samples = given(Texts(path, own, text="q,r"), specs())
        feeds = samples.slice(0, 2)
        assert feeds["input_ids"].tolist() == [[1, 4, 2, 5, 6, 2], [1, 6, 6, 2, 4, 2]]
        assert feeds["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1]]
        assert samples.extras["label"].tolist() == [1, 0]


def test_only_the_chosen_lines(tmp_path: Path):
    """Fails where --samples takes other lines than the same choice among all."""
    source = Texts(text_file(tmp_path, *("a " * i for i in range(1, 8))), tokenizer(tmp_path), 12)
    every = given(source, specs()).slice(0, 7)["input_ids"]
    order = np.sort(np.random.default_rng(3).permutation(7)[:3])
    assert np.array_equal(given(source, specs(), Wanted(3, 3)).slice(0, 3)["input_ids"], every[order])


HOSTILE: dict[str, tuple[str, bytes, str]] = {
    "no text": ("t.txt", b"\n \n", "holds no text"),
    "no UTF-8": ("t.txt", b"a\n\xff\xfe\n", "line 2 is no text in UTF-8"),
    "no JSON": ("t.jsonl", b'{"text": "a"}\n{"text"\n', "line 2 is no JSON"),
    "deep JSON": ("t.jsonl", b"[" * 100_000, "line 1 is no JSON|is neither a text"),
    "another key": ("t.jsonl", b'{"body": "a"}\n', r"has no text under 'text' but 'body'; name it \(--text\)"),
    "a number": ("t.jsonl", b"3\n", "is neither a text nor an object"),
    "another column": ("t.csv", b"body\na\n", "has no text under 'text' but 'body'"),
    "a short row": ("t.csv", b"label,text\n1\n", "has no text under 'text'"),
    "another kind": ("t.pdf", b"%PDF", "holds no texts: give a file with one in each line"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files(kind: str, tmp_path: Path):
    """Fails where a file that holds no texts passes, or ends in an error of a library."""
    name, content, match = HOSTILE[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CalibrationError, match=match) as e:
        given(Texts(tmp_path / name, tokenizer(tmp_path)), specs())
    assert "\n" not in str(e.value)


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Fails where other inputs are left unfilled, or a file that is no tokenizer is taken for one."""
    path, own = text_file(tmp_path, *LINES), tokenizer(tmp_path)
    with pytest.raises(CalibrationError, match=r"the model has the inputs 'input_ids', 'images'; .*--data-script"):
        given(Texts(path, own), specs(None, None, "input_ids", "images"))
    with pytest.raises(CalibrationError, match=r"is no tokenizer.json"):
        given(Texts(path, path), specs())
    with pytest.raises(CalibrationError, match=r"holds texts: give the model's tokenizer.json too"):
        given(path, specs())
    for bad in ({"length": 0}, {"length": "short"}, {"text": "a,b,c"}, {"text": ""}):
        with pytest.raises(UsageError):
            Texts(path, own, **bad)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UsageError, match=r"pip install 'onnxprune\[text\]'"):
        given(Texts(path, own), specs())


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Fails where a model of texts is not pruned from its lines, or the report does not say how they became tokens."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n)
        for n, s in (("table", (8, 16)), ("u", (16, 32)), ("v", (32, 3)))
    ]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["e"]),
        helper.make_node("ReduceMean", ["e"], ["m"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["m", "u"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["y"]),
    ]
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["N", "L"])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])
    model = helper.make_model(
        helper.make_graph(nodes, "g", [ids], [out], weights), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.save(model, tmp_path / "m.onnx")
    texts = text_file(tmp_path, *(" ".join(rng.choice(list("abcd"), rng.integers(1, 9))) for _ in range(40)))
    data = [str(texts), "--tokenizer", str(tokenizer(tmp_path)), "--length", "8"]
    run = ["prune", str(tmp_path / "m.onnx"), str(tmp_path / "o.onnx"), "--ratio", "0.2", "--fast", "--calib", *data]
    assert main(run) == 0
    assert "texts: tokenizer.json, 8 tokens; " in " ".join(capsys.readouterr().out.split())
    for args, text in (
        (["--calib", str(texts), "--length", "8"], "--length is about texts, which need a tokenizer.json"),
        (["--calib", *data, "--preset", "raw"], "leave out one"),
        (["--tokenizer", "t.json"], "--tokenizer is about data"),
    ):
        assert main(["inspect", str(tmp_path / "m.onnx"), *args]) == 2
        assert text in capsys.readouterr().err
