"""The benchmark of a small decoder: its text, the cuts that it compares, and its table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.accuracy.runs import Run
from benchmarks.decoder import texts
from benchmarks.decoder.__main__ import WAYS, main, parser, rendered, runs

torch = pytest.importorskip("torch", reason="the decoder is trained with torch")


def test_the_split_is_of_whole_files_by_their_names(tmp_path: Path) -> None:
    for k in range(40):
        (tmp_path / f"m{k}.py").write_text(f"x = {k}\n")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "left_out.py").write_text("left out\n")
    learnt, held = texts.sources(tmp_path)
    assert sorted(learnt + held) == sorted(f"x = {k}\n" for k in range(40))
    assert held and len(learnt) > len(held)
    (tmp_path / "more.py").write_text("another\n")
    assert set(held) <= set(texts.sources(tmp_path)[1])


def test_pieces_do_not_overlap_and_follow_the_seed() -> None:
    tokens = np.arange(103)
    rows = texts.sequences(tokens, 99, seed=1, length=10)
    assert sorted(rows.ravel()) == list(range(100))
    np.testing.assert_array_equal(rows[:4], texts.sequences(tokens, 4, seed=1, length=10))
    assert (rows[:4] != texts.sequences(tokens, 4, seed=2, length=10)).any()


def small():
    from benchmarks.decoder.network import Sizes, initialised

    network = initialised(Sizes(groups=(3, 2), inner=(10, 6), width=16, size=4, vocabulary=24))
    for values in network.parameters():
        torch.nn.init.normal_(values, std=0.5)
    return network


def test_a_cut_network_is_the_original_without_these_units() -> None:
    """Oracle: the original with the last projections' columns of what goes at zero, and the biases added by hand."""
    from benchmarks.decoder.network import with_units

    network, ids = small(), torch.arange(18).reshape(2, 9)
    heads, units = [np.array([0, 2]), np.array([1])], [np.array([1, 4, 5]), np.array([0])]
    biases = [[torch.randn(16) for _ in range(2)] for _ in range(2)]
    cut = with_units(network, heads, units, biases)
    with torch.no_grad():
        for layer, h, u, (behind, after) in zip(network.layers, heads, units, biases, strict=True):
            blocks = ((layer.self_attn, "o_proj", h, 8, behind), (layer.mlp, "down_proj", u, 1, after))
            for block, name, kept, size, bias in blocks:
                end = getattr(block, name)
                end.weight *= torch.as_tensor(np.isin(np.arange(end.in_features) // size, kept))
                end.bias = torch.nn.Parameter(bias)
        torch.testing.assert_close(cut(ids), network(ids), rtol=1e-4, atol=1e-4)
    assert cut.sizes == replace(network.sizes, groups=(2, 1), inner=(3, 1), biased=True)


def test_flap_ranks_by_variance_and_replaces_by_the_mean() -> None:
    from benchmarks.decoder.baselines import pruned, scores, seen

    network, ids = small(), np.random.default_rng(0).integers(0, 24, (5, 9))
    read = []
    hook = network.layers[0].mlp.down_proj.register_forward_pre_hook(lambda _, x: read.append(x[0].detach()))
    with torch.no_grad():
        network(torch.as_tensor(ids))
    hook.remove()
    x, w = read[0].reshape(-1, 10).double().numpy(), network.layers[0].mlp.down_proj.weight.detach().numpy()
    statistics = seen(network, ids)
    wanted = x.var(axis=0, ddof=1) * (w.astype(np.float64) ** 2).sum(axis=0)
    np.testing.assert_allclose(scores(network, "flap", statistics)[0][1], wanted, rtol=1e-5)
    cut = pruned(network, ids, "flap", 9 * 3 * 16 * 9)
    gone = 10 - cut.sizes.inner[0]
    last = network.sizes.inner[1] - cut.sizes.inner[1] + gone
    assert last + sum(network.sizes.groups) - sum(cut.sizes.groups) > 0
    if gone:
        lost = np.sort(np.argsort(wanted)[:gone])
        mean = w[:, lost] @ x[:, lost].mean(axis=0)
        np.testing.assert_allclose(cut.layers[0].mlp.down_proj.bias.detach().numpy(), mean, rtol=1e-4, atol=1e-5)


def test_units_go_up_to_the_cost_and_one_stays() -> None:
    from benchmarks.decoder.baselines import chosen

    ranked = [(np.array([3.0, 1.0, 2.0]), np.arange(10.0)), (np.array([5.0, 9.0]), np.arange(6.0) ** 4)]
    heads, units = chosen(ranked, (100, 1), 310, adaptive=False)
    gone = 100 * (5 - sum(map(len, heads))) + 16 - sum(map(len, units))
    assert gone == 310
    assert list(heads[0]) == [0] and list(heads[1]) == [1]
    assert [10 - len(units[0]), 6 - len(units[1])] == [6, 4] and units[0][0] == 6  # equal shares, the least scores
    heads, units = chosen(ranked, (100, 1), 1e9, adaptive=True)
    assert [len(row) for row in (*heads, *units)] == [1, 1, 1, 1]
    assert heads[0][0] == 0 and units[0][0] == 9


def test_a_run_from_training_to_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tokenizers", reason="the text is tokens of a BPE")
    from benchmarks.decoder.compare import measure
    from benchmarks.decoder.network import Sizes
    from benchmarks.decoder.train import Schedule, make

    sources = (["def f(x):\n    return x + 1\n" * 300], ["def g(y):\n    return y - 1\n" * 300])
    make(tmp_path, Sizes(groups=(2,), inner=(300,), width=16, size=4, vocabulary=270), Schedule(2, 2), sources)
    assert "held out" in capsys.readouterr().out
    run = Run("decoder", 0.2, "flap", "adaptive", "bias", samples=8)
    row = run.row(measure(run, tmp_path, 1))
    assert row["macs_left"] == pytest.approx(0.8, abs=0.02)
    assert 1 < row["perplexity_after"] < 400
    text = rendered([row, run.row({"failure": "none"})])
    assert text.splitlines()[2].startswith("| 20% | flap | adaptive | bias |")
    assert "failure" not in text and "none" in text


def test_what_reads_no_samples_is_run_once() -> None:
    every = list(runs(parser().parse_args(["x", "--seeds", "2", "--ratios", "0.2"])))
    assert len(every) == 2 * len(WAYS) - 3
    assert len({r.key for r in every}) == len(every)


def test_nothing_to_do_is_said(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="nothing to do"):
        main([])
    with pytest.raises(SystemExit, match=r"no model\.onnx"):
        main([str(tmp_path), "--out", str(tmp_path / "x.jsonl")])
