"""Quantized graphs: Quantize and Dequantize pairs in the ways of several tools, and what computes with codes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import DTypeLike, NDArray
from onnx import helper, numpy_helper

from tests.topologies.convolution import PLAIN
from tests.topologies.text import Topology

_OUTPUT_AXIS: Mapping[str, int] = {"Conv": 0, "ConvTranspose": 1, "MatMul": 1}
_STEP = 0.05


@dataclass
class Quantizer:
    """Quantizes every Conv, ConvTranspose, Gemm and MatMul of a model, in place.

    kind: of the codes of weights. per_channel: a scale for each output of a weight. asymmetric: with zero points off
    the middle. block: one scale for that many inputs of a MatMul. as_float: weights stay in floating point, in front of
    a QuantizeLinear. activations: their inputs, too, and so their biases. domain: of the quantizing nodes.
    """

    kind: DTypeLike = np.int8
    per_channel: bool = True
    asymmetric: bool = False
    block: int = 0
    as_float: bool = False
    activations: bool = True
    domain: str = ""
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    stored: dict[str, NDArray[np.generic]] = field(default_factory=dict)

    def __call__(self, model: onnx.ModelProto) -> None:
        self.nodes, done = [], set[str]()
        self.stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        for n in model.graph.node:
            if n.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") and n.input[1] in self.stored:
                transposed = any(a.name == "transB" and a.i for a in n.attribute)
                axis = _OUTPUT_AXIS.get(n.op_type, 0 if transposed else 1)
                scale = self._weight(n, axis)
                if self.activations:
                    x = n.input[0]
                    if x not in done:
                        self._activation(x)
                        done.add(x)
                    n.input[0] = f"{x}_real"
                    if len(n.input) > 2:
                        groups = next((a.i for a in n.attribute if a.name == "group"), 1)
                        self._bias(n, np.tile(scale, groups) if n.op_type == "ConvTranspose" else scale)
            self.nodes.append(n)
        nodes = [_copied(n) for n in self.nodes]
        used = {i for n in nodes for i in n.input}
        del model.graph.node[:], model.graph.initializer[:]
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in self.stored.items() if k in used)

    def _node(self, op: str, x: str, out: str, scale: str, zero: str, **attrs: int) -> None:
        self.nodes.append(helper.make_node(op, [x, scale, zero], [out], domain=self.domain, **attrs))

    def _weight(self, n: onnx.NodeProto, axis: int) -> NDArray[np.generic]:
        name = n.input[1]
        w = np.asarray(self.stored[name], np.float64)
        whole = self.kind != ml_dtypes.float8_e4m3fn
        info = ml_dtypes.iinfo(self.kind) if whole else ml_dtypes.finfo(self.kind)
        if self.block:
            axis = 0
            starts = np.arange(0, w.shape[0], self.block)
            least, most = np.minimum.reduceat(w, starts), np.maximum.reduceat(w, starts)
        else:
            others = tuple(a for a in range(w.ndim) if a != axis) if self.per_channel else None
            least, most = np.asarray(w.min(axis=others)), np.asarray(w.max(axis=others))
        if self.asymmetric:
            scale = ((np.maximum(most, 0) - np.minimum(least, 0)) / (int(info.max) - int(info.min))).astype(np.float32)
            zero = np.rint(int(info.min) - np.minimum(least, 0) / scale).astype(self.kind)
        else:
            scale = (np.maximum(most, -least) / int(info.max)).astype(np.float32)
            zero = np.zeros(scale.shape, self.kind)
        self.stored |= {f"{name}_scale": scale, f"{name}_zero": zero}
        attrs = {"axis": axis} if self.per_channel or self.block else {}
        if self.block:
            attrs["block_size"] = self.block
        codes = f"{name}_codes"
        if self.as_float:
            self._node("QuantizeLinear", name, codes, f"{name}_scale", f"{name}_zero", **attrs)
        else:
            spread = [np.asarray(v, np.float64) for v in (scale, zero)]
            if self.block:
                spread = [np.repeat(v, self.block, axis=0)[: len(w)] for v in spread]
            elif self.per_channel:
                spread = [v.reshape([-1 if a == axis else 1 for a in range(w.ndim)]) for v in spread]
            codes_of = w / spread[0]
            q = np.clip((np.rint(codes_of) if whole else codes_of) + spread[1], int(info.min), int(info.max))
            self.stored[codes] = q.astype(self.kind)
        self._node("DequantizeLinear", codes, f"{name}_real", f"{name}_scale", f"{name}_zero", **attrs)
        n.input[1] = f"{name}_real"
        return scale

    def _activation(self, x: str) -> None:
        # All activations share one scale and one zero point.
        self.stored |= {"step": np.array(_STEP, np.float32), "centre": np.array(128, np.uint8)}
        self._node("QuantizeLinear", x, f"{x}_codes", "step", "centre")
        self._node("DequantizeLinear", f"{x}_codes", f"{x}_real", "step", "centre")

    def _bias(self, n: onnx.NodeProto, scale: NDArray[np.generic]) -> None:
        name = n.input[2]
        wide = (scale * np.float32(_STEP)).astype(np.float32)
        self.stored[f"{name}_codes"] = np.rint(np.asarray(self.stored[name], np.float64) / wide).astype(np.int32)
        self.stored |= {f"{name}_scale": wide, f"{name}_zero": np.zeros(wide.shape, np.int32)}
        attrs = {"axis": 0} if wide.ndim else {}
        self._node("DequantizeLinear", f"{name}_codes", f"{name}_real", f"{name}_scale", f"{name}_zero", **attrs)
        n.input[2] = f"{name}_real"


@dataclass(frozen=True)
class Packer:
    """Packs weights: each MatMul with a weight in `weights` becomes a MatMulNBits, in place.

    So does each Gather of rows of such a table a GatherBlockQuantized, with blocks along the rows.

    zeros: a zero point for each block, else none is stored. level: `accuracy_level`. biased: the Add behind each is a
    bias of its own. Codes are packed here number by number, by what the operator's documentation says.
    """

    weights: tuple[str, ...]
    bits: int = 4
    block: int = 16
    zeros: bool = True
    level: int = 0
    biased: bool = False

    def __call__(self, model: onnx.ModelProto) -> None:
        stored = {t.name: t for t in model.graph.initializer}
        matrices = {name: numpy_helper.to_array(stored[name]) for name in self.weights}
        behind = {n.input[0]: n for n in model.graph.node if n.op_type == "Add"}
        for n in list(model.graph.node):
            if n.op_type == "Gather" and n.input[0] in self.weights:
                self._rows(n, matrices[n.input[0]], model)
            if n.op_type != "MatMul" or n.input[1] not in self.weights:
                continue
            name, add = n.input[1], behind.get(n.output[0]) if self.biased else None
            w = matrices[name]
            codes, scales, zeros = self.codes(w)
            given = [name, f"{name}_scales", f"{name}_zeros" if self.zeros else "", "", add.input[1] if add else ""]
            for key, value in zip(given, (codes, scales, zeros), strict=False):
                if key in stored:
                    stored[key].CopyFrom(numpy_helper.from_array(value, key))
                elif key:
                    model.graph.initializer.append(numpy_helper.from_array(value, key))
            while not given[-1]:
                given.pop()
            n.op_type, n.domain = "MatMulNBits", "com.microsoft"
            n.input[:] = [n.input[0], *given]
            sizes = {"K": w.shape[0], "N": w.shape[1], "bits": self.bits, "block_size": self.block}
            n.attribute.extend(helper.make_attribute(k, v) for k, v in (sizes | {"accuracy_level": self.level}).items())
            if add is not None:
                n.output[0] = add.output[0]
                model.graph.node.remove(add)

    def _rows(self, n: onnx.NodeProto, table: NDArray[np.generic], model: onnx.ModelProto) -> None:
        name = n.input[0]
        codes, scales, zeros = self.codes(table.T)
        stored = {name: codes.reshape(len(table), -1)[:, : -(-table.shape[1] * self.bits // 8)]}
        stored |= {f"{name}_scales": scales, **({f"{name}_zeros": zeros} if self.zeros else {})}
        next(t for t in model.graph.initializer if t.name == name).CopyFrom(
            numpy_helper.from_array(np.ascontiguousarray(stored[name]), name)
        )
        model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in stored.items() if k != name)
        del n.attribute[:]
        n.op_type, n.domain = "GatherBlockQuantized", "com.microsoft"
        n.input[:] = [name, n.input[1], *(k for k in stored if k != name)]
        sizes = {"bits": self.bits, "block_size": self.block, "quantize_axis": 1, "gather_axis": 0}
        n.attribute.extend(helper.make_attribute(k, v) for k, v in sizes.items())

    def codes(self, w: NDArray[np.generic]) -> tuple[NDArray[np.generic], ...]:
        """(codes, scales, zero points) of a weight (inputs, outputs), as MatMulNBits stores them, by output."""
        k, n = w.shape
        blocks, most = -(-k // self.block), 2**self.bits - 1
        codes = np.zeros((n, blocks, self.block * self.bits // 8), np.uint8)
        scales = np.zeros((n, blocks), np.float32)
        zeros = np.zeros((n, -(-blocks * self.bits // 8)), np.uint8)
        for column in range(n):
            for b in range(blocks):
                rows = w[b * self.block : (b + 1) * self.block, column].astype(np.float64)
                if self.zeros:
                    scale = (max(rows.max(), 0) - min(rows.min(), 0)) / most
                    zero = round(-min(rows.min(), 0) / scale)
                else:
                    zero = 2 ** (self.bits - 1)
                    scale = float(rows[np.abs(rows).argmax()]) / -zero
                scales[column, b] = scale
                zeros[column, b * self.bits // 8] |= zero << (b * self.bits % 8)
                for i, value in enumerate(rows):
                    code = min(max(round(value / scale) + zero, 0), most)
                    codes[column, b, i * self.bits // 8] |= code << (i * self.bits % 8)
        return codes, scales, zeros


def _copied(n: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(n)
    return copy


def integers(*names: str, kind: DTypeLike = np.int8) -> Callable[[onnx.ModelProto], None]:
    """Store these weights as integers, whatever numbers they hold."""

    def edit(model: onnx.ModelProto) -> None:
        for t in model.graph.initializer:
            if t.name in names:
                w = numpy_helper.to_array(t)
                t.CopyFrom(numpy_helper.from_array(np.rint(10 * w).astype(kind), t.name))

    return edit


def _with_zero_points(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.arange(8, dtype=np.uint8) + 124, "z1"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(120, np.uint8), "z2"))


def _with_signed_zero_points(model: onnx.ModelProto) -> None:
    # Scales of about 1 would leave no more than the sign.
    for t in model.graph.initializer:
        if t.name == "var_s":
            t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(t) / 100, t.name))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(6, np.int8), "z"))


def _with_codes(model: onnx.ModelProto) -> None:
    if any(n.op_type == "QLinearConv" for n in model.graph.node):
        integers("w1", "w2")(model)
    model.graph.initializer.append(numpy_helper.from_array(np.array(120, np.uint8), "z"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), "zw"))


@dataclass(frozen=True)
class QuantizedLstm:
    """Makes every LSTM of a model, in place, one that onnxruntime computes with codes.

    per_channel: a scale for each row of every gate. kind: of the codes.
    """

    per_channel: bool = False
    kind: DTypeLike = np.int8

    def __call__(self, model: onnx.ModelProto) -> None:
        stored = {t.name: t for t in model.graph.initializer}
        model.opset_import.add(domain="com.microsoft", version=1)
        for n in model.graph.node:
            if n.op_type != "LSTM":
                continue
            n.op_type, n.domain = "DynamicQuantizeLSTM", "com.microsoft"
            n.input.extend([""] * (8 - len(n.input)))
            for name in n.input[1:3]:
                w = numpy_helper.to_array(stored[name]).transpose(0, 2, 1)
                info = np.iinfo(self.kind)
                most = np.abs(w).max(axis=1 if self.per_channel else (1, 2))
                # Off the middle, so that a code of 0 is not the number 0.
                scale, zero = (most / 120).astype(np.float32), np.full(most.shape, (info.max + info.min + 1) // 2 + 3)
                spread = [np.asarray(v)[:, None, :] if self.per_channel else v[:, None, None] for v in (scale, zero)]
                q = np.clip(np.rint(w / spread[0]) + spread[1], info.min, info.max).astype(self.kind)
                stored[name].CopyFrom(numpy_helper.from_array(q, name))
                made = {f"{name}_scale": scale, f"{name}_zero": zero.astype(self.kind)}
                model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in made.items())
                n.input.extend(made)


BRANCHES = """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
    a = Conv <pads=[1,1,1,1]> (x, w1[8,3,3,3], b1[8])
    r = Relu(a)
    d = Conv <group=8, pads=[1,1,1,1]> (r, w2[8,1,3,3], b2[8])
    e = Conv (d, w3[8,8,1,1], b3[8])
    s = Add(e, r)
    c = Conv (s, w4[6,8,1,1], b4[6])
    k = Concat <axis=1> (s, c)
    y = Conv (k, w5[5,14,1,1])
}"""

PRODUCTS = """(float[N,7] x) => (float[N,5] y) {
    a = Gemm <transB=1> (x, w1[12,7], b1[12])
    r = Relu(a)
    c = MatMul (r, w2[12,8])
    s = Relu(c)
    y = Gemm (s, w3[8,5], b3[5])
}"""

ROWS: Mapping[str, Topology] = {
    "quantized": Topology(PLAIN, (8, 6), edit=Quantizer()),
    "quantized_per_tensor": Topology(
        BRANCHES, (8, 6), opset=13, edit=Quantizer(np.uint8, per_channel=False, asymmetric=True)
    ),
    "quantized_branches": Topology(BRANCHES, (8, 6), edit=Quantizer(np.uint8, asymmetric=True)),
    "quantized_old": Topology(PLAIN, (8, 6), opset=12, edit=Quantizer(per_channel=False)),
    "quantized_float_weights": Topology(
        # As training tools export it: the weight in floating point, quantized where it is read.
        BRANCHES,
        (8, 6),
        edit=Quantizer(as_float=True),
    ),
    "quantized_products": Topology(PRODUCTS, (12, 8), edit=Quantizer()),
    "quantized_weights_only": Topology(PRODUCTS, (12, 8), edit=Quantizer(np.uint8, asymmetric=True, activations=False)),
    "quantized_four_bits": Topology(
        PRODUCTS, (12, 8), opset=21, ir_version=10, edit=Quantizer(ml_dtypes.int4, activations=False)
    ),
    "quantized_small_floats": Topology(
        PRODUCTS,
        (12, 8),
        opset=19,
        ir_version=9,
        edit=Quantizer(ml_dtypes.float8_e4m3fn, per_channel=False, activations=False),
    ),
    "quantized_blocks": Topology(
        # Four inputs of a product share a scale: they go together.
        """(float[N,7] x) => (float[N,5] y) {
            a = MatMul (x, w1[7,12])
            r = Relu(a)
            y = MatMul (r, w2[12,5])
        }""",
        (3,),
        opset=21,
        ir_version=10,
        edit=Quantizer(block=4, activations=False),
    ),
    "quantized_packed": Topology(
        # Sixteen inputs of a product share a scale, and go together; of 37 the last block has five, a unit of its own
        # kind.
        """(float[N,20] x) => (float[N,5] y) {
            a = MatMul (x, w1[20,48])
            r = Relu (a)
            b = MatMul (r, w2[48,37])
            c = Add (b, b2[37])
            s = Tanh (c)
            y = MatMul (s, w3[37,5])
        }""",
        (3, 2, 1),
        opset=21,
        ir_version=10,
        domains=("com.microsoft",),
        edit=Packer(("w1", "w2", "w3"), biased=True),
    ),
    "quantized_packed_eight_bits": Topology(
        # What reads these outputs reads each by itself: so they go one by one.
        """(float[N,L,20] x) => (float[N,L,5] y) {
            a = MatMul (x, w1[20,12])
            r = Relu (a)
            y = MatMul (r, w2[12,5])
        }""",
        (12,),
        opset=21,
        ir_version=10,
        domains=("com.microsoft",),
        edit=Packer(("w1",), bits=8, zeros=False),
    ),
    "quantized_packed_rows": Topology(
        """(int64[N,L] x) => (float[N,L,5] y) {
            e = Gather (w0[9,48], x)
            a = MatMul (e, w1[48,32])
            r = Relu (a)
            b = MatMul (r, w2[32,48])
            s = Add (e, b)
            y = MatMul (s, w3[48,5])
        }""",
        (3, 2),
        pins=("Gather picks from this axis",),
        opset=21,
        ir_version=10,
        domains=("com.microsoft",),
        edit=Packer(("w0", "w1", "w2", "w3")),
    ),
    "shared_packed_codes": Topology(
        # Two products read one weight, whose blocks are those of both.
        """(float[N,32] x, float[N,32] z) => (float[N,5] y) {
            a = MatMul (x, w1[32,48])
            b = MatMul (z, w1)
            s = Add (a, b)
            r = Relu (s)
            y = MatMul (r, w2[48,5])
        }""",
        (3,),
        opset=21,
        ir_version=10,
        domains=("com.microsoft",),
        edit=Packer(("w1", "w2"), bits=2),
    ),
    "quantized_microsoft": Topology(PLAIN, (8, 6), domains=("com.microsoft",), edit=Quantizer(domain="com.microsoft")),
    "quantized_transposed": Topology(
        """(float[N,3,8,8] x) => (float[N,5,18,18] y) {
            a = Conv <pads=[1,1,1,1]> (x, w1[8,3,3,3], b1[8])
            u = ConvTranspose <strides=[2,2], output_padding=[1,1], kernel_shape=[3,3]> (a, w2[8,6,3,3], b2[6])
            v = ConvTranspose <group=2> (u, w3[6,2,1,1], b3[4])
            y = Conv (v, w4[5,4,1,1], b4[5])
        }""",
        (8, 6, 2),
        edit=Quantizer(),
    ),
    "quantized_by_channel": Topology(
        # Activations with a scale for each channel, and codes that move before they are read.
        """(float[N,3,8,8] x) => (float[N,4] y) {
            a = Conv (x, w1[8,3,3,3], b1[8])
            q = QuantizeLinear <axis=1> (a, var_s[8], z1)
            m = MaxPool <kernel_shape=[2,2], strides=[2,2]> (q)
            d = DequantizeLinear <axis=-3> (m, var_s, z1)
            e = QuantizeLinear (d, s2{:0.05}, z2)
            t = Transpose <perm=[0,2,3,1]> (e)
            u = DequantizeLinear (t, s3{:0.05}, z2)
            f = Flatten(u)
            y = Gemm (f, w2[72,4])
        }""",
        (8,),
        edit=_with_zero_points,
    ),
    "codes_transposed": Topology(
        # As training tools write a linear layer: the product reads a transpose of what is dequantized.
        """(float[N,4,7] x) => (float[N,4,5] y) {
            a = MatMul (x, w1[7,8])
            r = Relu(a)
            q = QuantizeLinear <axis=0> (w2[6,8], var_s[6], z)
            d = DequantizeLinear <axis=0> (q, var_s, z)
            t = Transpose <perm=[1,0]> (d)
            c = MatMul (r, t)
            e = Add (c, b2[6])
            y = MatMul (e, w3[6,5])
        }""",
        (8, 6),
        edit=_with_signed_zero_points,
    ),
    "lstm_on_codes": Topology(
        # Products in front that round alike however many columns they have, so that codes can be compared too.
        """(float[L,N,1] x) => (float[L,N,5] y) {
            e = Mul (x, w0[4])
            a = Add (e, b0[4])
            m = ReduceMean <keepdims=0> (x, first{0})
            g = Mul (m, w3[6])
            h0 = Unsqueeze (g, first{0})
            s, h, c = LSTM <hidden_size=6> (a, w1[1,24,4], r1[1,24,6], b1[1,48], , h0, h0)
            t = Squeeze (s, ax{1})
            y = MatMul (t, w2[6,5])
        }""",
        (6, 4),
        edit=QuantizedLstm(kind=np.uint8),
    ),
    "lstm_on_codes_bidirectional": Topology(
        """(float[L,N,1] x) => (float[L,N,5] y) {
            e = Mul (x, w0[4])
            s = LSTM <hidden_size=6, direction="bidirectional", clip=3.0> (e, w1[2,24,4], r1[2,24,6])
            t = Transpose <perm=[0,2,1,3]> (s)
            f = Reshape (t, to{0,0,-1})
            y = MatMul (f, w2[12,5])
        }""",
        (12, 4),
        edit=QuantizedLstm(per_channel=True, kind=np.uint8),
    ),
    "lstm_on_codes_never_zero": Topology(
        """(float[L,N,1] x) => (float[L,N,5] y) {
            e = Mul (x, w0[4])
            s = LSTM <hidden_size=6, activations=["Sigmoid","Tanh","HardSigmoid"]> (e, w1[1,24,4], r1[1,24,6])
            t = Squeeze (s, ax{1})
            y = MatMul (t, w2[6,5])
        }""",
        (4,),
        pins=("with an activation that is not 0 at 0",),
        edit=QuantizedLstm(),
    ),
    "codes_by_dynamic_range": Topology(
        """(float[N,7] x) => (float[N,5] y) {
            a = MatMul (x, w1[7,8])
            r = Relu(a)
            q, s, z = DynamicQuantizeLinear (r)
            m = MatMulInteger (q, w2[8,6], z)
            c = Cast <to=1> (m)
            k = Mul (c, s)
            e = MatMul (k, w3[6,8])
            g = Relu (e)
            y = MatMul (g, w4[8,5])
        }""",
        (8, 8, 6),
        edit=integers("w2"),
    ),
    "codes_summed": Topology(
        # Integers are no numbers yet where they are added.
        """(float[N,7] x) => (float[N,5] y) {
            a = MatMul (x, w1[7,8])
            q, s, z = DynamicQuantizeLinear (a)
            m = MatMulInteger (q, w2[8,6], z)
            n = Add (m, m)
            c = Cast <to=1> (n)
            k = Mul (c, s)
            e = MatMul (k, w3[6,8])
            y = MatMul (e, w4[8,5])
        }""",
        (8,),
        pins=("MatMulInteger computes with integers", "meets axis 1 of 'k'"),
        edit=integers("w2"),
    ),
    "codes_by_dynamic_range_in_convolution": Topology(
        # Products in front that round alike however many there are, so that codes can be compared too.
        """(float[N,1,6,6] x) => (float[N,5,6,6] y) {
            a = Mul (x, w1[8,1,1])
            q, s, z = DynamicQuantizeLinear (a)
            m = ConvInteger <pads=[1,1,1,1]> (q, w2[6,8,3,3], z)
            c = Cast <to=1> (m)
            t = Mul (s, s2{:0.02})
            k = Mul (t, c)
            e = Add (k, b2[6,1,1])
            r = Relu (e)
            y = Conv (r, w3[5,6,1,1])
        }""",
        (8, 6),
        edit=integers("w2", kind=np.uint8),
    ),
    "codes_as_numbers": Topology(
        # What reads the codes themselves needs their rounding.
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            q = QuantizeLinear (a, s1{:0.05}, z)
            c = Cast <to=1> (q)
            y = Conv (c, w2[5,8,1,1])
        }""",
        (8,),
        edit=_with_codes,
    ),
    "codes_in_convolution": Topology(
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
            xq = QuantizeLinear (x, s1{:0.05}, z)
            a = QLinearConv (xq, s1, z, w1[8,3,1,1], s2{:0.01}, zw, s3{:0.05}, z)
            r = QLinearConv (a, s3, z, w2[5,8,1,1], s2, zw, s3, z)
            y = DequantizeLinear (r, s3, z)
        }""",
        (8,),
        edit=_with_codes,
    ),
}
