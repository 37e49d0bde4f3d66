"""Attention as one operator, and by parts with what exporters put around it."""

from __future__ import annotations

from collections.abc import Mapping

from tests.topologies.text import Topology

_MEETS = "which carries no channels"


def _packed(attention: str, *, q: int = 12, kv: int = 12, out: int = 12, extra: str = "", after: str = "") -> str:
    """Projections around one packed attention; `attention` names q, k, v and sets o."""
    return f"""(float[N,L,6] x{extra}) => (float[N,L,5] y{after}) {{
        q = MatMul(x, wq[6,{q}])
        k = MatMul(x, wk[6,{kv}])
        v = MatMul(x, wv[6,{kv}])
        {attention}
        y = MatMul(o, wo[{out},5])
    }}"""


def _apart(attention: str) -> str:
    """Projections around attention with an axis for the heads: four query heads, two for keys and values."""
    return f"""(float[N,L,6] x) => (float[N,L,5] y) {{
        q = MatMul(x, wq[6,16])
        k = MatMul(x, wk[6,8])
        v = MatMul(x, wv[6,12])
        qh = Reshape(q, four{{0,-1,4,4}})
        kh = Reshape(k, two{{0,-1,2,4}})
        vh = Reshape(v, six{{0,-1,2,6}})
        qt = Transpose <perm=[0,2,1,3]> (qh)
        kt = Transpose <perm=[0,2,1,3]> (kh)
        vt = Transpose <perm=[0,2,1,3]> (vh)
        {attention}
        ot = Transpose <perm=[0,2,1,3]> (o)
        of = Reshape(ot, back{{0,-1,24}})
        y = MatMul(of, wo[24,5])
    }}"""


_SPLIT_HEADS = """
    qh = Reshape(q, to{0,-1,3,4})
    kh = Reshape(k, to)
    vh = Reshape(v, to)
    qt = Transpose <perm=[0,2,1,3]> (qh)
    kt = Transpose <perm=[0,2,1,3]> (kh)
    vt = Transpose <perm=[0,2,1,3]> (vh)
"""

_NORMALIZED = """
    qh = Reshape(q, to{0,-1,3,4})
    kh = Reshape(k, to)
    vh = Reshape(v, to)
    qn = LayerNormalization(qh, sq[4])
    kn = LayerNormalization(kh, sk[4])
    qt = Transpose <perm=[0,2,1,3]> (qn)
    kt = Transpose <perm=[0,2,3,1]> (kn)
    vt = Transpose <perm=[0,2,1,3]> (vh)
    s = MatMul(qt, kt)
    p = Softmax <axis=-1> (s)
    m = MatMul(p, vt)
    mt = Transpose <perm=[0,2,1,3]> (m)
    o = Reshape(mt, back{0,-1,12})
"""

_WITHOUT_SOFTMAX = """
    qh = Reshape(q, to{0,-1,3,4})
    kh = Reshape(k, to)
    vh = Reshape(v, to)
    kv = Einsum <equation="blhd,blhe->bhde"> (kh, vh)
    m = Einsum <equation="blhd,bhde->blhe"> (qh, kv)
    o = Reshape(m, back{0,-1,12})
"""

ROWS: Mapping[str, Topology] = {
    "attention": Topology(
        _packed("o = Attention <q_num_heads=3, kv_num_heads=3> (q, k, v)"), (3,), opset=23, ir_version=10
    ),
    "heads_normalized_behind_positions": Topology(
        # Heads lie behind one another with positions, and each is normalized by itself.
        """(float[N,L,6] x) => (float[N,L,5] y) {
            q = MatMul(x, wq[6,12])
            r = Reshape(q, to{0,-1,4})
            p = Mul(r, r)
            m = ReduceMean <keepdims=1> (p, last{-1})
            e = Add(m, small{:0.01})
            s = Sqrt(e)
            n = Div(r, s)
            g = Mul(n, scale[4])
            o = Reshape(g, back{0,-1,12})
            y = MatMul(o, wo[12,5])
        }""",
        (3,),
        pins=("it is the same for all units",),
    ),
    "attention_positions": Topology(
        # Keys and queries lose the same positions of every head, values others; the scale stays.
        _packed("o = Attention <q_num_heads=3, kv_num_heads=3, is_causal=1, softcap=4.0> (q, k, v)"),
        (4, 4),
        opset=24,
        ir_version=10,
        attention="head-dim",
    ),
    "attention_grouped": Topology(
        # Two query heads share each of three key heads: they go together.
        _packed("o = Attention <q_num_heads=6, kv_num_heads=3, is_causal=1> (q, k, v)", q=24, out=24),
        (3,),
        opset=23,
        ir_version=10,
    ),
    "attention_one_key_head": Topology(
        # A single key head: every query head is its own.
        _packed("o = Attention <q_num_heads=4, kv_num_heads=1, scale=0.3> (q, k, v)", q=16, kv=4, out=16),
        (4,),
        pins=("the only key/value head serves every query head",),
        opset=23,
        ir_version=10,
    ),
    "attention_one_head": Topology(
        # There are no heads to remove: the positions inside the one are free.
        _packed("o = Attention <q_num_heads=1, kv_num_heads=1> (q, k, v)"),
        (12, 12),
        opset=23,
        ir_version=10,
    ),
    "attention_apart": Topology(_apart("o = Attention(qt, kt, vt)"), (2,), opset=23, ir_version=10),
    "attention_apart_positions": Topology(
        _apart("o = Attention(qt, kt, vt)"), (6, 4), opset=23, ir_version=10, attention="head-dim"
    ),
    "attention_bias_per_head": Topology(
        # One bias per head goes with the head; one for all is no concern of theirs.
        _packed(
            """a = Attention <q_num_heads=3, kv_num_heads=3> (q, k, v, rel[3,5,5])
            o = Attention <q_num_heads=3, kv_num_heads=3> (a, k, v, common[5,5])"""
        ).replace("L", "5"),
        (3,),
        pins=("attention needs every position",),
        opset=23,
        ir_version=10,
    ),
    "attention_mask_from_outside": Topology(
        # A mask with heads, given by the caller: all of them stay. Values inside a head still could not go alone.
        _packed("o = Attention <q_num_heads=3, kv_num_heads=3> (q, k, v, mask)", extra=", float[N,3,L,L] mask"),
        (),
        pins=("meets axis 2 of 'o'",),
        opset=23,
        ir_version=10,
    ),
    "attention_cache": Topology(
        # The caller's past keys have all heads, and the present ones are outputs.
        _packed(
            'o, nk, nv = Attention <q_num_heads=3, kv_num_heads=3> (q, k, v, "", pk, pv)',
            extra=", float[N,3,2,4] pk, float[N,3,2,4] pv",
            after=", float[N,3,M,4] nk, float[N,3,M,4] nv",
        ),
        (),
        pins=("meets axis 2 of 'o'",),
        opset=23,
        ir_version=10,
    ),
    "attention_scores": Topology(
        # The scores are read on: their heads go with the others.
        _packed(
            """o, nk, nv, s = Attention <q_num_heads=3, kv_num_heads=3, qk_matmul_output_mode=3> (q, k, v)
            r = ReduceMean <keepdims=0> (s, ax{2,3})
            z = MatMul(r, wz[3,4])""",
            after=", float[N,4] z",
        ),
        (3,),
        opset=23,
        ir_version=10,
    ),
    "rotary": Topology(
        _packed(
            """qr = RotaryEmbedding <num_heads=3> (q, cos[16,2], sin[16,2], at)
            kr = RotaryEmbedding <num_heads=3, interleaved=1> (k, cos, sin, at)
            o = Attention <q_num_heads=3, kv_num_heads=3> (qr, kr, v)""",
            extra=", int64[N,L] at",
        ),
        (3,),
        opset=23,
        ir_version=10,
    ),
    "rotary_positions": Topology(
        # Pairs turn together, and both caches lose the pair.
        _packed(
            """qr = RotaryEmbedding <num_heads=2> (q, cos[16,3], sin[16,3], at)
            kr = RotaryEmbedding <num_heads=2> (k, cos, sin, at)
            o = Attention <q_num_heads=2, kv_num_heads=2> (qr, kr, v)""",
            extra=", int64[N,L] at",
        ),
        (6, 3),
        opset=23,
        ir_version=10,
        attention="head-dim",
    ),
    "rotary_in_part": Topology(
        # Four positions of eight turn, neighbours together; the other four go in pairs too, as the size stays even.
        _packed(
            """qr = RotaryEmbedding <num_heads=3, rotary_embedding_dim=4, interleaved=1> (q, cos[16,2], sin[16,2], at)
            kr = RotaryEmbedding <num_heads=3, rotary_embedding_dim=4, interleaved=1> (k, cos, sin, at)
            o = Attention <q_num_heads=3, kv_num_heads=3> (qr, kr, v)""",
            q=24,
            kv=24,
            out=24,
            extra=", int64[N,L] at",
        ),
        (8, 2, 2),
        opset=23,
        ir_version=10,
        attention="head-dim",
    ),
    "attention_by_parts_positions": Topology(
        # The products of two activations, as exporters write them below opset 23.
        _packed(
            _SPLIT_HEADS
            + """ku = Transpose <perm=[0,1,3,2]> (kt)
            s = MatMul(qt, ku)
            c = Mul(s, scale{:0.5})
            p = Softmax <axis=-1> (c)
            m = MatMul(p, vt)
            mt = Transpose <perm=[0,2,1,3]> (m)
            o = Reshape(mt, back{0,-1,12})"""
        ),
        (4, 4),
        attention="head-dim",
    ),
    "attention_sliced_positions": Topology(
        # Queries, keys and values of one weight, taken apart by Slice and Squeeze as Paddle writes them.
        """(float[N,L,8] x) => (float[N,L,5] y) {
            a = MatMul(x, wq[8,36])
            h = Reshape(a, to{0,-1,3,3,4})
            t = Transpose <perm=[2,0,3,1,4]> (h)
            qs = Slice(t, st0{0}, en0{1}, at{0})
            q = Squeeze(qs, at)
            ks = Slice(t, st1{1}, en1{2}, at{0})
            k = Squeeze(ks, at)
            vs = Slice(t, st2{2}, en2{3}, at{0})
            v = Squeeze(vs, at)
            ku = Transpose <perm=[0,1,3,2]> (k)
            s = MatMul(q, ku)
            p = Softmax <axis=-1> (s)
            m = MatMul(p, v)
            mt = Transpose <perm=[0,2,1,3]> (m)
            o = Reshape(mt, back{0,-1,12})
            y = MatMul(o, wo[12,5])
        }""",
        (8,),
        attention="head-dim",
    ),
    "rotary_by_parts": Topology(
        # One table for all heads: whole heads go, the table stays.
        _packed(
            _SPLIT_HEADS
            + """lo, hi = Split <axis=3> (qt, halves{2,2})
            ng = Neg(hi)
            qs = Concat <axis=3> (ng, lo)
            qc = Mul(qt, cos[4])
            qz = Mul(qs, sin[4])
            qr = Add(qc, qz)
            ku = Transpose <perm=[0,1,3,2]> (kt)
            s = MatMul(qr, ku)
            p = Softmax <axis=-1> (s)
            m = MatMul(p, vt)
            mt = Transpose <perm=[0,2,1,3]> (m)
            o = Reshape(mt, back{0,-1,12})"""
        ),
        (3,),
        pins=("it is the same for all units of what it meets",),
    ),
    "rotary_by_parts_positions": Topology(
        # Halves turn together, so two units of two positions are left of four; the table loses them too.
        _packed(
            _SPLIT_HEADS
            + """lo, hi = Split <axis=3> (qt, halves{2,2})
            ng = Neg(hi)
            qs = Concat <axis=3> (ng, lo)
            qc = Mul(qt, cos[4])
            qz = Mul(qs, sin[4])
            qr = Add(qc, qz)
            ku = Transpose <perm=[0,1,3,2]> (kt)
            s = MatMul(qr, ku)
            p = Softmax <axis=-1> (s)
            m = MatMul(p, vt)
            mt = Transpose <perm=[0,2,1,3]> (m)
            o = Reshape(mt, back{0,-1,12})"""
        ),
        (4, 2),
        attention="head-dim",
    ),
    "repeated_key_heads": Topology(
        # Grouped queries by parts: each key head is repeated for two query heads.
        _packed(
            """qh = Reshape(q, four{0,-1,6,4})
            kh = Reshape(k, two{0,-1,3,4})
            vh = Reshape(v, two)
            qt = Transpose <perm=[0,2,1,3]> (qh)
            kt = Transpose <perm=[0,2,3,1]> (kh)
            vt = Transpose <perm=[0,2,1,3]> (vh)
            ku = Unsqueeze(kt, ax{2})
            vu = Unsqueeze(vt, ax)
            kx = Expand(ku, twice{1,1,2,1,1})
            vx = Expand(vu, twice)
            kr = Reshape(kx, kb{0,6,4,-1})
            vr = Reshape(vx, vb{0,6,-1,4})
            s = MatMul(qt, kr)
            p = Softmax <axis=-1> (s)
            m = MatMul(p, vr)
            mt = Transpose <perm=[0,2,1,3]> (m)
            o = Reshape(mt, back{0,-1,24})""",
            q=24,
            out=24,
        ),
        (3,),
    ),
    "normalized_heads": Topology(
        # A normalization inside each head, of queries and keys: whole heads go, its scales stay.
        _packed(_NORMALIZED),
        (3,),
        pins=("meets axis 3 of 'qh'", "meets axis 3 of 'kh'"),
    ),
    "normalized_heads_positions": Topology(
        # The normalizations run over the positions that are left.
        _packed(_NORMALIZED),
        (4, 4),
        mixing=(4,),
        attention="head-dim",
    ),
    "attention_without_softmax": Topology(
        # Keys meet values first: their positions are apart.
        _packed(_WITHOUT_SOFTMAX, q=12, kv=12),
        (3,),
    ),
    "attention_without_softmax_positions": Topology(
        _packed(_WITHOUT_SOFTMAX, q=12, kv=12), (4, 4), attention="head-dim"
    ),
}
