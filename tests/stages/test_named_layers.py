"""Layers that a user names."""

from __future__ import annotations

import pytest

from onnxprune.channels.whole_layers import WholeLayer
from onnxprune.errors import UsageError
from onnxprune.stages.named_layers import named_layers


def layers(*names: str) -> list[WholeLayer]:
    return [WholeLayer(i, name, (2 * i, 2 * i + 1), ("attention", "mlp"), frozenset()) for i, name in enumerate(names)]


def test_patterns_match_names_and_numbers_of_layers_without_one() -> None:
    """Fails where layers whose weights share no scope can be named by no pattern, or named ones by their number's."""
    assert named_layers(layers("", "", ""), ["*"]) == {0, 1, 2}
    assert named_layers(layers("", "", ""), ["[12]"]) == {1, 2}
    assert named_layers(layers("/a.0", "/a.1", ""), ["/a.*"]) == {0, 1}
    assert named_layers(layers("/a.0", "/a.1", ""), ["1", "2"]) == {1, 2}
    assert named_layers(layers("/a.0", "/a.1", "/a,b"), ["0,1"]) == {0, 1}
    assert named_layers(layers("/a.0", "/a.1", "/a,b"), ["/a,*", "1, 0"]) == {0, 1, 2}
    with pytest.raises(UsageError, match="5 matches no layer; the model has the layers 0 to 1"):
        named_layers(layers("/a.0", "/a.1"), ["0,5"])
    with pytest.raises(UsageError, match="matches no layer"):
        named_layers(layers("/a.0", "/a.1"), ["[01]"])
