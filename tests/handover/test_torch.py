"""The page's loader on a network of PyTorch with attention: exported, pruned, narrowed, trained, exported again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxprune import prune
from onnxprune.runtime.session import Session
from onnxprune.sentence.export_plan import export_plan
from scripts.house import ROOT
from tests.compare import assert_same

torch = pytest.importorskip("torch", reason="torch is not installed")
save = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
nn = torch.nn
_X = np.random.default_rng(0).normal(size=(32, 6, 16)).astype(np.float32)


def of_the_page() -> dict[str, Any]:
    """The functions that the page defines for loading."""
    page = (ROOT / "docs" / "how-to" / "pytorch.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        if "def narrow" in block:
            exec(block[: block.index("\nslim = ")], names)
    return names


class Encoder(nn.Module):
    """A projection, and a block of attention and of a feed-forward layer, each added to the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.norm1, self.norm2 = nn.Linear(16, 16), nn.LayerNorm(16), nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Any) -> Any:
        x = self.project(x)
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return self.head((x + self.mlp(self.norm2(x))).mean(1))


def exported(net: Any, path: Path) -> None:
    torch.onnx.export(
        net, (torch.tensor(_X[:2]),), str(path), dynamo=False, input_names=["x"], output_names=["logits"],
        dynamic_axes={"x": {0: "batch"}, "logits": {0: "batch"}}, opset_version=17,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # the exporter warns of itself, and of what tracing does not follow
def test_attention_goes_back_and_forth(tmp_path: Path):
    torch.manual_seed(0)
    net = Encoder().eval()
    with torch.no_grad():
        for p in net.parameters():  # biases of zeros tell nothing apart
            p.add_(0.1 * torch.randn(p.shape))
    exported(net, tmp_path / "net.onnx")
    given = {"uniform": 0.25, "method": "magnitude", "refit": "least-squares", "recover": 0, "round_to": 1}
    prune(tmp_path / "net.onnx", tmp_path / "slim.onnx", {"x": _X}, plan_file=tmp_path / "net.plan", **given)
    export_plan(tmp_path / "net.plan", tmp_path / "net.onnx", tmp_path / "slim.safetensors", tmp_path / "slim.onnx")
    page = of_the_page()
    slim = page["narrow_heads"](page["narrow"](Encoder(), str(tmp_path / "slim")), str(tmp_path / "slim")).eval()
    assert slim.attention.heads == 3 and slim.project.out_features == 12 and slim.mlp[0].out_features == 18
    with torch.no_grad():
        got = slim(torch.tensor(_X)).numpy()
    assert_same(got, Session(tmp_path / "slim.onnx").run({"x": _X})["logits"], rtol=1e-4, atol=1e-4)
    optimizer = torch.optim.SGD(slim.train().parameters(), 1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        slim(torch.tensor(_X)).square().mean().backward()
        optimizer.step()
    exported(slim.eval(), tmp_path / "again.onnx")
    again = prune(tmp_path / "again.onnx", None, {"x": _X}, **{**given, "refit": "none"})
    assert again.report.after.macs < again.report.before.macs
