"""Models that are not what their bytes promise, each refused in one line that says what is wrong."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import inspect, prune
from onnxprune.data.inputs import tensor_specs
from onnxprune.errors import InputError, ModelError
from onnxprune.intake import wellformed
from tests.installed import needs_run
from tests.runtime.test_child import graph_of


def linear(**change):
    """x @ w, with fields of the weight changed."""
    model = graph_of([helper.make_node("MatMul", ["x", "w"], ["y"], "product")], {"w": np.ones((6, 3), np.float32)})
    for field, value in change.items():
        if field == "dims":
            del model.graph.initializer[0].dims[:]
            model.graph.initializer[0].dims.extend(value)
        else:
            setattr(model.graph.initializer[0], field, value)
    return model


def test_a_sound_model_passes():
    wellformed.check(linear())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"data_type": 2**31 - 1}, "unknown element type 2147483647"),
        ({"data_type": 0}, "unknown element type 0"),
        ({"data_type": TensorProto.FLOAT16}, "holds 72 bytes, its shape and type need 36"),
        ({"data_type": TensorProto.STRING}, "holds 72 bytes"),
        ({"raw_data": b"\0" * 71}, "holds 71 bytes"),
        ({"dims": [6, -3]}, "negative size -3"),
        ({"dims": [2**62, 2**62]}, "no memory holds"),
        ({"dims": [6, 4]}, "need 96"),
    ],
)
def test_weights_that_are_not_as_declared(change: dict, why: str):
    with pytest.raises(ModelError, match=why):
        wellformed.check(linear(**change))


@pytest.mark.parametrize("kind", ["FLOAT", "DOUBLE", "INT64", "UINT64", "INT8"])
def test_values_that_are_too_few(kind: str):
    model = linear()
    model.graph.initializer[0].CopyFrom(helper.make_tensor("w", TensorProto.DataType.Value(kind), [4], [1, 2, 3, 4]))
    wellformed.check(model)
    model.graph.initializer[0].dims[0] = 5
    with pytest.raises(ModelError, match="holds 4 values, its shape needs 5"):
        wellformed.check(model)


def every_type():
    """Types with a way to store them in fields of numbers."""
    skip = {TensorProto.UNDEFINED}
    return [t for t in TensorProto.DataType.values() if t not in skip]


@pytest.mark.parametrize("kind", every_type())
def test_every_type_passes_as_onnx_writes_it(kind: int):
    """Fails where a type's own way of storing values is taken for a wrong one."""
    values = [b"a", b"b", b"c"] if kind == TensorProto.STRING else [1, 0, 1]
    model = linear()
    model.graph.initializer[0].CopyFrom(helper.make_tensor("w", kind, [3], values))
    wellformed.check(model)
    if kind != TensorProto.STRING:
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(numpy_helper.to_array(model.graph.initializer[0])))
        wellformed.check(model)


@pytest.mark.parametrize("where", ["product", "input", "weight", "axis", "custom", "MatMul"])
def test_names_that_are_no_text(where: str):
    model = graph_of(
        [helper.make_node("MatMul", ["input", "weight"], ["y"], "product")],
        {"weight": np.ones((6, 3), np.float32)},
        (("input", TensorProto.FLOAT, ["axis", 6]),),
    )
    model.opset_import.append(helper.make_opsetid("custom", 1))
    wellformed.check(model)
    broken = onnx.ModelProto.FromString(model.SerializeToString().replace(where.encode(), b"\xe4" * len(where)))
    with pytest.raises(ModelError, match="UTF-8"):
        wellformed.check(broken)


# functions


def test_names_have_an_end():
    """Fails where a file of names alone keeps every stage busy, or where a long name is refused."""
    model = linear()
    model.graph.node[0].output[0] = model.graph.output[0].name = "n" * wellformed.MOST_CHARACTERS
    wellformed.check(model)
    model.graph.node[0].output[0] += "n"
    with pytest.raises(ModelError, match=r"has 100,001 characters") as e:
        wellformed.check(model)
    assert len(str(e.value)) < 200


def calling(depth: int, calls: int):
    """Functions of which each calls the one before it several times."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    functions = []
    for k in range(depth):
        op, domain = (f"F{k - 1}", "f") if k else ("Relu", "")
        nodes = [helper.make_node(op, [f"t{j}" if j else "a"], [f"t{j + 1}"], domain=domain) for j in range(calls)]
        nodes.append(helper.make_node("Identity", [f"t{calls}"], ["b"]))
        functions.append(helper.make_function("f", f"F{k}", ["a"], ["b"], nodes, opsets))
    model = graph_of([helper.make_node(f"F{depth - 1}", ["x"], ["y"], domain="f")])
    model.opset_import.append(helper.make_opsetid("f", 1))
    model.functions.extend(functions)
    return model


def test_functions_that_multiply():
    wellformed.check(calling(10, 2))
    with pytest.raises(ModelError, match=r"nodes once its functions are inlined"):
        wellformed.check(calling(40, 2))
    with pytest.raises(ModelError, match=r"nodes once its functions are inlined"):
        wellformed.check(calling(2000, 10))  # a number beyond every float


def test_functions_that_multiply_inside_a_body():
    model = calling(40, 2)
    inner = helper.make_graph(list(model.graph.node), "b", [], [helper.make_tensor_value_info("y", 1, None)])
    node = helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner)
    del model.graph.node[:]
    model.graph.node.append(node)
    with pytest.raises(ModelError, match=r"nodes once its functions are inlined"):
        wellformed.check(model)


def branching(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its nodes in both branches of an If."""
    inner = helper.make_graph(list(model.graph.node), "b", [], [helper.make_tensor_value_info("y", 1, None)])
    del model.graph.node[:]
    model.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner))
    return model


def test_nodes_in_bodies_are_bounded(monkeypatch: pytest.MonkeyPatch):
    """Fails where bodies inside bodies are not counted: two the same in each of twenty levels make a million."""
    chain = graph_of([helper.make_node("Relu", ["x"], ["t"]), helper.make_node("Relu", ["t"], ["y"])])
    nested = branching(branching(chain))  # 2 Ifs, and 2 nodes in each of 4 branches
    monkeypatch.setattr(wellformed, "MOST_IN_BODIES", 10)
    wellformed.check(nested)
    monkeypatch.setattr(wellformed, "MOST_IN_BODIES", 9)
    with pytest.raises(ModelError, match=r"bodies of If, Loop and Scan hold 10 nodes together; at most 9 are read"):
        wellformed.check(nested)


def test_nodes_in_bodies_of_functions_are_bounded(monkeypatch: pytest.MonkeyPatch):
    """Fails where what inlining puts into bodies is not counted, by a call there or by a function that holds them."""
    called = branching(calling(3, 2))  # F0 has 4 nodes with its own, F1 and F2 call the one before twice
    count = 2 * (1 + 1 + 2 * (1 + 1 + 2 * (1 + 2 + 1)))
    holding = calling(3, 2)
    function = holding.functions[0]
    body = helper.make_graph([helper.make_node("Relu", ["a"], ["r"])], "b", [], [])
    function.node.append(helper.make_node("If", ["a"], ["s"], then_branch=body, else_branch=body))
    for model, inside in ((called, count), (holding, 2 * 2 * 2)):
        monkeypatch.setattr(wellformed, "MOST_IN_BODIES", inside)
        wellformed.check(model)
        monkeypatch.setattr(wellformed, "MOST_IN_BODIES", inside - 1)
        with pytest.raises(ModelError, match=rf"hold {inside} nodes together"):
            wellformed.check(model)


@pytest.mark.parametrize("to", [0, 1, 2])
def test_functions_that_call_themselves(to: int):
    """By way of one another, too."""
    model = calling(3, 1)
    model.functions[0].node[0].op_type = f"F{to}"
    model.functions[0].node[0].domain = "f"
    with pytest.raises(ModelError, match="calls itself"):
        wellformed.check(model)


def test_functions_called_often_are_counted_once():
    """Fails where the walk itself takes as long as inlining would."""
    wellformed.check(calling(400, 1))


def test_bodies_inside_bodies():
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [], [])
    for _ in range(wellformed.MOST_LEVELS + 2):
        graph = helper.make_graph([helper.make_node("If", ["c"], ["y"], then_branch=graph)], "g", [], [])
    with pytest.raises(ModelError, match="nests bodies"):
        wellformed.check(helper.make_model(graph))


# inputs


@pytest.mark.parametrize(
    "dims",
    [["N", 3, 2**40, 2**40], ["N", 2**62, 2**62], [2**63 - 1, 3], ["N", 10**5, 10**5]],
)
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.BOOL])
def test_inputs_of_impossible_size_are_named(dims: list, kind: int):
    model = graph_of([helper.make_node("Identity", ["image"], ["y"])], inputs=(("image", kind, dims),))
    model.graph.output[0].type.tensor_type.elem_type = kind
    with pytest.raises(InputError, match="input 'image'"):
        inspect(model)


@pytest.mark.parametrize("kind", [0, 99])
def test_inputs_of_no_type(kind: int):
    model = graph_of([helper.make_node("Identity", ["x"], ["y"])], inputs=(("x", kind, ["N", 3]),))
    with pytest.raises(ModelError, match=f"input 'x' is declared with the unknown element type {kind}"):
        inspect(model)


def network(batch: int | str):
    """Two layers, and a sum over the axes that a second input, an empty list, names."""
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("ReduceSum", ["a", "axes"], ["b"], noop_with_empty_axes=1),
        helper.make_node("MatMul", ["b", "w2"], ["y"]),
    ]
    rng = np.random.default_rng(0)
    weights = {k: rng.standard_normal(s).astype(np.float32) for k, s in (("w1", (3, 16)), ("w2", (16, 2)))}
    return graph_of(nodes, weights, (("x", TensorProto.FLOAT, [batch, 3]), ("axes", TensorProto.INT64, [0])))


def test_a_batch_of_none_is_described():
    """Fails where a batch of no samples ends somewhere in the arithmetic, or an empty list of axes is taken for one."""
    nothing = {"x": np.zeros((0, 3), np.float32), "axes": np.zeros(0, np.int64)}
    needs_run(network(0), nothing, "leave an empty batch as it is where a sum names no axes")
    assert inspect(network(0)).model == inspect(network("N")).model


def test_a_batch_of_none_is_a_batch_of_any_size():
    """Fails where a size that exporters write for "any" is demanded of the data, or is left in what is written."""
    data = {"x": np.random.default_rng(0).standard_normal((16, 3)).astype(np.float32)}
    result = prune(network_without_axes(0), None, data, uniform=0.5, fast=True)
    assert result.model is not None
    assert [d.HasField("dim_value") for d in result.model.graph.input[0].type.tensor_type.shape.dim] == [False, True]


def network_without_axes(batch: int):
    """Two layers."""
    model = network(batch)
    del model.graph.input[1:]
    model.graph.node[1].CopyFrom(helper.make_node("Relu", ["a"], ["b"]))
    return model


def test_a_zero_elsewhere_is_no_fault():
    """A cache that is empty at first."""
    model = graph_of([helper.make_node("Relu", ["x"], ["y"])], inputs=(("x", 1, ["N", 0, 4]),))

    assert tensor_specs(model)[0].dims == (None, 0, 4)


def test_a_model_with_an_external_weight_is_checked_where_it_lies():
    model = linear()
    model.graph.initializer[0].ClearField("raw_data")
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    wellformed.check(onnx.ModelProto.FromString(model.SerializeToString()))


def test_references_to_attributes_of_no_function():
    """Fails where an attribute without a value is read, which onnx's checker and onnxruntime let pass."""
    model = graph_of([helper.make_node("Softmax", ["x"], ["y"], "soft", axis=1)], {})
    wellformed.check(model)
    model.graph.node[0].attribute[0].ref_attr_name = "axis"
    with pytest.raises(ModelError, match="'axis' of node 'soft'"):
        wellformed.check(model)


# types


@pytest.mark.parametrize("kind", ["sequence_type", "optional_type", "map_type"])
@pytest.mark.parametrize("where", ["input", "output", "value_info", "body", "attribute"])
def test_types_in_types_have_an_end(kind: str, where: str):
    """Fails where something that takes twice as long for each level gets a type that no runtime knows."""
    model = linear()
    if where == "attribute":
        model.graph.node.append(helper.make_node("Optional", [], ["o"]))
        declared = model.graph.node[-1].attribute.add(name="type", type=onnx.AttributeProto.TYPE_PROTO).tp
    elif where == "body":
        inner = helper.make_graph([helper.make_node("Relu", ["x"], ["b"])], "b", [], [onnx.ValueInfoProto(name="b")])
        model.graph.node.append(helper.make_node("If", ["c"], ["o"], then_branch=inner, else_branch=inner))
        declared = model.graph.node[-1].attribute[0].g.output[0].type
    else:
        declared = getattr(model.graph, where).add(name="t").type

    def nested(levels: int) -> None:
        declared.Clear()
        t = declared
        for _ in range(levels):
            field = "value_type" if kind == "map_type" else "elem_type"
            t = getattr(getattr(t, kind), field)
        t.tensor_type.elem_type = 1

    nested(wellformed.MOST_TYPES - 1)
    wellformed.check(model)
    nested(wellformed.MOST_TYPES)
    with pytest.raises(ModelError, match="nests more than 8 deep"):
        wellformed.check(model)


def test_axes_have_an_end():
    """Fails where a number of axes reaches numpy that it has no arrays for."""
    model = graph_of([helper.make_node("Relu", ["x"], ["y"])], inputs=(("x", 1, ["N", *[1] * 31]),))
    wellformed.check(model)
    model.graph.input[0].type.tensor_type.shape.dim.add(dim_value=1)
    with pytest.raises(ModelError, match="'x' has 33 axes; at most 32"):
        wellformed.check(model)
    weight = linear()
    weight.graph.initializer[0].dims.extend([1] * 31)
    with pytest.raises(ModelError, match="'w' has 33 axes"):
        wellformed.check(weight)
