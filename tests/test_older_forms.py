"""Networks at opset 9, with every weight listed as an input, and with shared weights, through the whole job."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune import PruneConfig, prune
from onnxprune.graph import protobuf
from onnxprune.intake import model_file
from onnxprune.runtime.session import Session
from tests import digits
from tests.compare import assert_same
from tests.graphs import TABLE
from tests.kit import kit_folder
from tests.older import OPSET, at_opset_9
from tests.prepared import masked, prepare, random_keep, sliced
from tests.sharing import with_shared_weights

FORMS: Mapping[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "opset-9": at_opset_9,
    "shared-vectors": lambda proto: with_shared_weights(proto, 1, 1),
    "shared-kernels": lambda proto: with_shared_weights(proto, 2, 4),
}
KIT = (
    "models/mnist_bottleneck_resnet_legacy_bn",
    "models/mnist_resnext_legacy",
    "arch/mobilenetv3_small",
    "arch/regnetx_small",
    "arch/unet_convt_bn",
    "arch/densenet121_g8_bn",
)
FITTED = PruneConfig(ratio=0.3, round_to=1, samples=24, refit="least-squares", min_channels=1)


def _file(net: str) -> Path:
    if net in digits.NAMES:
        return digits.path(net)
    path = kit_folder() / f"{net}.onnx"
    if not path.is_file():
        pytest.skip("the kit of real models is not here: set ONNXPRUNE_KIT to its folder")
    return path


@pytest.mark.parametrize("net", [*digits.NAMES, *KIT])
@pytest.mark.parametrize("form", FORMS)
def test_slice_equals_the_oracle(form: str, net: str):
    """Fails where an older form of an operator is misread, or a weight that two nodes share is cut for one of them."""
    original = model_file.load(_file(net))[0]
    proto = FORMS[form](original)
    (x,) = (v for v in original.graph.input if v.name not in {t.name for t in original.graph.initializer})
    dims = [d.dim_value or 16 for d in x.type.tensor_type.shape.dim][1:]
    feeds = [{x.name: np.random.default_rng(n).standard_normal((n, *dims)).astype(np.float32)} for n in (2, 3)]
    p = prepare(proto, feeds[0])
    assert p.channels.groups
    keep = random_keep(p.channels, 1)
    small, oracle = Session(sliced(p, keep)), Session(masked(p, keep))
    for batch in feeds:
        before, normal = Session(proto).run(batch), Session(p.normalised.proto).run(batch)
        after, expected = small.run(batch), oracle.run(batch)
        for output in before:
            assert_same(normal[output], before[output], rtol=1e-5, atol=0.0)
            assert_same(after[output], expected[output], rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("name", ["shuffle_dynamic", "residual", "layer_norm"])
def test_what_was_pruned_can_be_pruned_again(name: str, tmp_path: Path):
    """Fails where names that the first run gave to new nodes and weights are given again."""
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    prune(TABLE[name].model(), first, config=FITTED)
    report = prune(first, second, config=FITTED).report
    assert report.checks["slice_against_oracle"] <= 1e-4
    assert report.after.parameters < report.before.parameters


@pytest.mark.parametrize("net", [*digits.NAMES, *KIT[:3]])
@pytest.mark.parametrize("form", FORMS)
def test_the_whole_job(form: str, net: str, tmp_path: Path):
    """Fails where the written model is of another version, lists weights as inputs, or is not smaller."""
    proto = FORMS[form](model_file.load(_file(net))[0])
    out = tmp_path / "out.onnx"
    report = prune(proto, out, config=FITTED).report
    assert report.checks["slice_against_oracle"] <= 1e-4
    assert report.achieved >= FITTED.share
    written = onnx.load(out)
    assert written.opset_import == proto.opset_import
    assert list(written.graph.output) == list(proto.graph.output)
    assert len(written.graph.input) == 1
    assert protobuf.parameters(written) < protobuf.parameters(proto)
    if form == "opset-9":
        assert [o.version for o in written.opset_import] == [OPSET]
