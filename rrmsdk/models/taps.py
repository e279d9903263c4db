"""Tracing a network once, so that one forward pass gives its logits, its embedding and its stage maps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor, fx, nn

from rrmsdk.errors import MismatchError

Rule = Callable[[fx.Graph], list[fx.Node]]
"""Which nodes of a traced graph are the stage maps, shallow to deep. May add nodes that reshape them."""


class DoesNotFitError(Exception):
    """The network cannot compute images of this size."""


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # Asks `self.training` inside: traced through, it would stay in the mode it was traced in.
        return isinstance(m, torchvision.ops.StochasticDepth) or super().is_leaf_module(m, module_qualified_name)


class _Shapes(fx.Interpreter):
    """Leaves in each node its `meta["shape"]` and, of a module, its `meta["kind"]`."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            n.meta["shape"] = tuple(result.shape)
        if n.op == "call_module":
            n.meta["kind"] = type(self.fetch_attr(str(n.target)))
        return result


def tapped(root: nn.Module, channels: int, size: int, stages: Rule) -> tuple[fx.GraphModule, str]:
    """A network in train mode with the weights of `root`, under their names, that returns (logits, embedding, *maps),
    and the name of its last linear layer.

    Raises:
        MismatchError: `root` does not end in a linear layer.
        DoesNotFitError: images of `size` are too small.
    """
    graph = _Tracer().trace(root)
    (output,) = graph.find_nodes(op="output")
    logits = output.args[0]
    head = root.get_submodule(logits.target) if logits.op == "call_module" else None
    if not isinstance(head, nn.Linear):
        raise MismatchError(
            f"{type(root).__name__} ends in {logits.name!r}, but an embedding is the input of a last linear layer. "
            "Take another architecture, such as 'mobilenet_v2'"
        )
    _shapes(root, graph, torch.zeros(1, channels, size, size, device="meta"))
    with graph.inserting_before(output):
        maps = stages(graph)
    output.args = ((logits, _before_dropout(root, logits.args[0]), *maps),)
    network = fx.GraphModule(root, graph, type(root).__name__)
    return network.train(), str(logits.target)


def _before_dropout(root: nn.Module, node: fx.Node) -> fx.Node:
    """What dropout sees: RRM matches the feature before the last dropout, which zeroes part of it at random."""
    while node.op == "call_module" and isinstance(root.get_submodule(str(node.target)), nn.Dropout):
        node = node.args[0]  # type: ignore[assignment]
    return node


def _shapes(root: nn.Module, graph: fx.Graph, x: Tensor) -> None:
    bare = fx.GraphModule(without_weights(root), graph).eval()
    try:
        _Shapes(bare, graph=graph).run(x)
    except (RuntimeError, AssertionError, ValueError, IndexError) as exc:
        raise DoesNotFitError(str(exc).strip().splitlines()[0]) from exc


def without_weights(root: nn.Module) -> nn.Module:
    """A copy of `root` that knows its shapes and holds no numbers."""
    tensors = (*root.parameters(), *root.buffers())
    return copy.deepcopy(root, {id(tensor): tensor.detach().to("meta") for tensor in tensors})


def scopes(*names: str) -> Rule:
    """The outputs of the submodules `names`."""

    def rule(graph: fx.Graph) -> list[fx.Node]:
        return [_last_inside(graph, name) for name in names]

    return rule


def channels_last(*names: str) -> Rule:
    """The outputs of the submodules `names`, which are [B, h, w, c]."""

    def rule(graph: fx.Graph) -> list[fx.Node]:
        return [graph.call_method("permute", (node, 0, 3, 1, 2)) for node in scopes(*names)(graph)]

    return rule


def _last_inside(graph: fx.Graph, name: str) -> fx.Node:
    return [node for node in graph.nodes if name in node.meta.get("nn_module_stack", ())][-1]


def before_pools(graph: fx.Graph) -> list[fx.Node]:
    """What the max-pools among the `features` of VGG or AlexNet see, and the end of `features` if that is no pool."""
    pools = [node for node in graph.nodes if node.meta.get("kind") is nn.MaxPool2d]
    seen = [pool.all_input_nodes[0] for pool in pools]
    last = _last_inside(graph, "features")
    return seen if last in pools else [*seen, last]


def resolutions(graph: fx.Graph) -> list[fx.Node]:
    """The last activation before each downsampling (by 1.5 or more), up to the global average pool."""
    stages: list[fx.Node] = []
    for node in _spine(graph):
        if stages and stages[-1].meta["shape"][-1] < 1.5 * node.meta["shape"][-1]:
            stages.pop()
        stages.append(node)
    return stages


_POOLS = (nn.AdaptiveAvgPool2d, nn.functional.adaptive_avg_pool2d, "mean")


def _spine(graph: fx.Graph) -> list[fx.Node]:
    """The maps that no residual or gating branch passes by, before the global average pool."""
    tensors = [node for node in graph.nodes if "shape" in node.meta and node.op != "get_attr"]
    place = {node: i for i, node in enumerate(tensors)}
    found: list[fx.Node] = []
    before_pool: list[fx.Node] = []
    reach = 0
    for i, node in enumerate(tensors):
        if reach <= i and (node.meta.get("kind") in _POOLS or node.target in _POOLS):
            before_pool = list(found)
        if reach <= i and node.op != "placeholder" and len(node.meta["shape"]) == 4:
            found.append(node)
        reach = max([reach, *(place[user] for user in node.users if user in place)])
    return before_pool or found
