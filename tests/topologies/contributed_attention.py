"""Attention as onnxruntime's own operators: grouped queries, heads with biases, caches, one position at a time."""

from __future__ import annotations

from collections.abc import Mapping

from tests.topologies.text import Topology

_DOMAINS = ("com.microsoft",)
# The lengths of a prompt: of each sample less one, and of all.
_LENGTHS = """
    sh = Shape(x)
    all = Gather(sh, one{:1})
    many = Gather(sh, zero{0})
    last = Sub(all, one)
    total = Cast <to=6> (all)
    short = Cast <to=6> (last)
    lens = Expand(short, many)
"""
_TURNS = "do_rotary=1, rotary_interleaved=1"


def _grouped(attention: str, *, qkv: int = 64, out: int = 32, extra: str = "", after: str = "") -> str:
    """A projection in front of grouped queries, and one behind; `attention` reads qkv, lens and total and sets o."""
    return f"""(float[N,L,6] x{extra}) => (float[N,L,5] y{after}) {{
        {_LENGTHS}
        qkv = MatMul(x, w[6,{qkv}])
        {attention}
        y = MatMul(o, wo[{out},5])
    }}"""


def _apart(attention: str, *, q: int = 12, v: int = 12, out: int = 12, extra: str = "", after: str = "") -> str:
    """Three projections around attention that reads q, k and v and sets o."""
    return f"""(float[N,L,6] x{extra}) => (float[N,L,5] y{after}) {{
        q = MatMul(x, wq[6,{q}])
        k = MatMul(x, wk[6,{q}])
        v = MatMul(x, wv[6,{v}])
        {attention}
        y = MatMul(o, wo[{out},5])
    }}"""


def _row(text: str, units: tuple[int, ...], pins: tuple[str, ...] = (), **more: object) -> Topology:
    return Topology(text, units, pins=pins, opset=17, domains=_DOMAINS, **more)  # type: ignore[arg-type]


ROWS: Mapping[str, Topology] = {
    "grouped_query_packed": _row(
        # Each of two key heads goes with the two query heads that read it.
        _grouped(
            'o = com.microsoft.GroupQueryAttention <num_heads=4, kv_num_heads=2> (qkv, "", "", "", "", lens, total)'
        ),
        (2,),
    ),
    "grouped_query_turned": _row(
        _grouped(
            "o = com.microsoft.GroupQueryAttention <num_heads=6, kv_num_heads=3, do_rotary=1, softcap=4.0, scale=0.3>"
            ' (qkv, "", "", "", "", lens, total, cos[9,8], sin[9,8])',
            qkv=192,
            out=96,
        ),
        (3,),
    ),
    "grouped_query_apart": _row(
        # Sinks and what is added to the scores have heads too.
        _apart(
            f"""{_LENGTHS}
            o = com.microsoft.GroupQueryAttention <num_heads=4, kv_num_heads=2, local_window_size=3>
                (q, kk, vv, "", "", lens, total, "", "", "", rel[1,4,5,5], sinks[4])""",
            q=32,
            v=32,
            out=32,
        )
        .replace("k = MatMul(x, wk[6,32])", "kk = MatMul(x, wk[6,16])")
        .replace("v = MatMul(x, wv[6,32])", "vv = MatMul(x, wv[6,16])")
        .replace("L]", "5]")
        .replace("L,", "5,"),
        (2,),
        pins=("attention needs every position",),
    ),
    "grouped_query_one_key_head": _row(
        _grouped(
            f"o = com.microsoft.GroupQueryAttention <num_heads=4, kv_num_heads=1, {_TURNS}>"
            ' (qkv, "", "", "", "", lens, total, cos[9,8], sin[9,8])',
            qkv=96,
            out=64,
        ),
        (4,),
        pins=("the only key/value head serves every query head",),
    ),
    "grouped_query_cache": _row(
        # The caches keep their heads: of the three queries of each head as many go as of every other.
        _grouped(
            """o, nk, nv = com.microsoft.GroupQueryAttention <num_heads=6, kv_num_heads=2>
                (qkv, "", "", pk, pv, lens, total)""",
            qkv=80,
            out=48,
            extra=", float[N,2,3,8] pk, float[N,2,3,8] pv",
            after=", float[N,2,4,8] nk, float[N,2,4,8] nv",
        )
        .replace("all = Gather(sh, one{:1})", "own = Gather(sh, one{:1}) all = Add(own, three{:3})")
        .replace("L", "1"),
        (6,),
    ),
    "grouped_query_present": _row(
        # Nothing comes in, but keys and values are given out.
        _grouped(
            "o, nk, nv = com.microsoft.GroupQueryAttention <num_heads=4, kv_num_heads=2>"
            ' (qkv, "", "", "", "", lens, total)',
            after=", float[N,2,T,8] nk, float[N,2,T,8] nv",
        ),
        (4,),
    ),
    "grouped_query_one_to_one": _row(
        # As many key heads as query heads, and a cache: all of them stay.
        _grouped(
            "o, nk, nv = com.microsoft.GroupQueryAttention <num_heads=2, kv_num_heads=2>"
            ' (qkv, "", "", "", "", lens, total)',
            qkv=48,
            out=16,
            after=", float[N,2,T,8] nk, float[N,2,T,8] nv",
        ),
        (),
        pins=("meets axis 2 of 'o'",),
    ),
    "grouped_query_one_head": _row(
        _grouped(
            'o = com.microsoft.GroupQueryAttention <num_heads=1, kv_num_heads=1> (qkv, "", "", "", "", lens, total)',
            qkv=24,
            out=8,
        ),
        (),
        pins=("a size that its kernels prescribe", "meets axis 2 of 'o'"),
    ),
    "multi_head": _row(_apart("o = com.microsoft.MultiHeadAttention <num_heads=3> (q, k, v)"), (3,)),
    "multi_head_biased": _row(
        # Every head has its share of the biases, and a bias of its scores.
        _apart(
            """o = com.microsoft.MultiHeadAttention <num_heads=3, unidirectional=1>
                (q, k, v, b[39], "", rel[1,3,5,5])""",
            v=15,
            out=15,
        ).replace("L", "5"),
        (3,),
        pins=("attention needs every position",),
    ),
    "multi_head_positions": _row(
        _apart("o = com.microsoft.MultiHeadAttention <num_heads=3> (q, k, v)", v=15, out=15),
        (5, 4),
        attention="head-dim",
    ),
    "multi_head_one_head": _row(_apart("o = com.microsoft.MultiHeadAttention <num_heads=1> (q, k, v)"), (12, 12)),
    "multi_head_biased_positions": _row(
        _apart("o = com.microsoft.MultiHeadAttention <num_heads=3> (q, k, v, b[36])"),
        (),
        pins=("or adds to them", "meets axis 2 of 'o'"),
        attention="head-dim",
    ),
    "multi_head_cache": _row(
        _apart(
            'o, nk, nv = com.microsoft.MultiHeadAttention <num_heads=3> (q, k, v, "", "", "", pk, pv)',
            extra=", float[N,3,2,4] pk, float[N,3,2,4] pv",
            after=", float[N,3,M,4] nk, float[N,3,M,4] nv",
        ),
        (),
        pins=("meets axis 2 of 'o'",),
    ),
    "multi_head_inner_cache": _row(
        # Keys and values of one layer are what the next has of the past.
        _apart(
            """a, ka, va = com.microsoft.MultiHeadAttention <num_heads=3> (q, k, v)
            o, kb, vb = com.microsoft.MultiHeadAttention <num_heads=3> (a, k, v, "", "", "", ka, va)"""
        ),
        (3,),
    ),
    "multi_head_inner_cache_positions": _row(
        _apart(
            """a, ka, va = com.microsoft.MultiHeadAttention <num_heads=3> (q, k, v)
            o, kb, vb = com.microsoft.MultiHeadAttention <num_heads=3> (q, k, v, "", "", "", ka, va)
            ya = MatMul(a, wa[12,4])""",
            after=", float[N,L,4] ya",
        ),
        (4,),
        attention="head-dim",
    ),
    "multi_head_crossed": _row(
        # Keys and values with an axis of their own for the heads.
        _apart(
            """kh = Reshape(k, to{0,-1,3,4})
            kt = Transpose <perm=[0,2,1,3]> (kh)
            vh = Reshape(v, to)
            vt = Transpose <perm=[0,2,1,3]> (vh)
            o = com.microsoft.MultiHeadAttention <num_heads=3> (q, kt, vt)"""
        ),
        (3,),
    ),
    "masked_multi_head": _row(
        _apart(
            """o = com.microsoft.DecoderMaskedMultiHeadAttention <num_heads=3>
                (q, k, v, "", "", "", "", "", "", "", b[36])"""
        ).replace("L", "1"),
        (3,),
    ),
}
