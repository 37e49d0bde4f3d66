"""What positions inside heads are worth to the logits of attention."""

from __future__ import annotations

import numpy as np

from onnxprune.calibration.logits import logit_regressions
from onnxprune.channels.products import products_of, weighted_sums
from tests.calibrated import samples_of, values
from tests.prepared import prepare
from tests.topologies.text import Topology

_TEXT = """(float[N,6,10] x) => (float[N,6,5] y) {
    q = MatMul(x, wq[10,12])
    k = MatMul(x, wk[10,12])
    v = MatMul(x, wv[10,12])
    qh = Reshape(q, to{0,-1,3,4})
    kh = Reshape(k, to)
    vh = Reshape(v, to)
    qt = Transpose <perm=[0,2,1,3]> (qh)
    kt = Transpose <perm=[0,2,3,1]> (kh)
    vt = Transpose <perm=[0,2,1,3]> (vh)
    s = MatMul(qt, kt)
    p = Softmax <axis=-1> (s)
    m = MatMul(p, vt)
    mt = Transpose <perm=[0,2,1,3]> (m)
    o = Reshape(mt, back{0,-1,12})
    y = MatMul(o, wo[12,5])
}"""


def test_the_quadratic_is_that_of_all_queries_and_all_keys():
    """Against the logits themselves, of each query with each key of any sample, as these are independent."""
    row = Topology(_TEXT, ())
    p = prepare(row.model(), row.feeds(2), "head-dim")
    samples = samples_of(p, 24)
    found = logit_regressions(p.normalised.proto, p.channels, samples, p.normalised.shapes, 0)
    (product,) = products_of(p.channels)
    ((group, parts),) = found.items()
    assert group == product.group and len(parts) == 3
    quadratic = sum(r.contributions(4) for r in parts)

    tensors = values(p.normalised.proto, [product.first.tensor, product.second.tensor], samples.slice(0, 24))
    q = tensors[product.first.tensor].astype(np.float64).transpose(1, 0, 2, 3).reshape(3, -1, 4)
    k = tensors[product.second.tensor].astype(np.float64).transpose(1, 0, 3, 2).reshape(3, -1, 4)
    k -= k.mean(axis=1, keepdims=True)  # the same for all logits of a query
    logits = np.einsum("hsd,htd->hst", q, k)
    power = (logits**2).mean(axis=(1, 2)).sum()
    for gone in ([0], [1, 3], [0, 1, 2]):
        lost = np.einsum("hsd,htd->hst", q[..., gone], k[..., gone])
        wanted = (lost**2).mean(axis=(1, 2)).sum() / power
        a = np.isin(np.arange(4), gone).astype(np.float64)
        np.testing.assert_allclose(a @ quadratic @ a, wanted, rtol=1e-5)


def test_whole_heads_have_no_positions():
    """Fails where positions are looked at that do not go."""
    row = Topology(_TEXT, ())
    p = prepare(row.model(), row.feeds(2))
    assert not list(products_of(p.channels)) and not list(weighted_sums(p.channels))
    assert logit_regressions(p.normalised.proto, p.channels, samples_of(p, 4), p.normalised.shapes, 0) == {}


def test_an_axis_of_positions_is_none_of_heads():
    """Fails where moments are summed by head along an axis whose size changes with the input."""
    row = Topology(
        """(float[N,L,10] x) => (float[N,L,1,1] y) {
            q = MatMul(x, wq[10,12])
            k = MatMul(x, wk[10,12])
            qh = Reshape(q, to{0,-1,1,12})
            kh = Reshape(k, to)
            kt = Transpose <perm=[0,1,3,2]> (kh)
            y = MatMul(qh, kt)
        }""",
        (),
    )
    p = prepare(row.model(), row.feeds(2), "head-dim")
    assert [g.size for g in p.channels.groups] == [12]
    assert not list(products_of(p.channels))
