"""What tools leave undone that write into graphs: types of all tensors before, and the order of nodes after."""

from __future__ import annotations

import heapq
from collections.abc import Mapping

import onnx

from onnxprune.graph.bodies import captured_names, copy_node


def declared(model: onnx.ModelProto, types: Mapping[str, int]) -> onnx.ModelProto:
    """With the types of activations that inference knows nothing of: tools leave those as they are."""
    known = {v.name for v in (*model.graph.input, *model.graph.value_info, *model.graph.output)}
    for name in sorted(types.keys() - known):
        model.graph.value_info.append(onnx.helper.make_tensor_value_info(name, types[name], None))
    return model


def in_order(model: onnx.ModelProto) -> None:
    """Sort the nodes of the main graph, in place: each behind those that it reads, and otherwise as they stood."""
    graph = model.graph
    done = {i.name for i in graph.input} | {t.name for t in graph.initializer}
    done |= {t.values.name for t in graph.sparse_initializer}
    nodes = [copy_node(n) for n in graph.node]
    made = {o for n in nodes for o in n.output if o} - done
    missing: list[set[str]] = []
    readers: dict[str, list[int]] = {}
    for k, n in enumerate(nodes):
        missing.append({i for i in (*n.input, *captured_names(n)) if i in made})
        for i in missing[k]:
            readers.setdefault(i, []).append(k)
    ready = [k for k, m in enumerate(missing) if not m]
    heapq.heapify(ready)
    del graph.node[:]
    while ready:
        node = nodes[heapq.heappop(ready)]
        graph.node.append(node)
        for o in node.output:
            for r in readers.pop(o, ()):
                missing[r].discard(o)
                if not missing[r]:
                    heapq.heappush(ready, r)
