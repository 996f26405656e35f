"""A network for inference only: batch-norm folded into the convolutions before it, channels last in memory."""

from __future__ import annotations

import copy

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def folded(network: nn.Module) -> nn.Module:
    """A copy in eval mode, without gradients, that has ``features`` and ``head`` as the network does.

    Logits differ by rounding from the network's own in eval mode. Where nothing can be folded (no batch-norm after a
    convolution of its own, a network that cannot be traced) the copy computes what the network does.
    """
    copied = copy.deepcopy(network).eval().requires_grad_(False)
    for convolution, norm in _pairs(copied):
        parent, _, child = convolution.rpartition(".")
        setattr(
            copied.get_submodule(parent),
            child,
            fuse_conv_bn_eval(copied.get_submodule(convolution), copied.get_submodule(norm)),  # type: ignore[arg-type, type-var]
        )
        parent, _, child = norm.rpartition(".")
        setattr(copied.get_submodule(parent), child, nn.Identity())
    return copied.to(memory_format=torch.channels_last)


def _pairs(network: nn.Module) -> list[tuple[str, str]]:
    """Names of each convolution and the batch-norm that is its only reader, where each is called once."""
    try:
        graph = fx.Tracer().trace(network)
    except Exception:  # whatever the network's own code raises on a symbolic input
        return []
    modules = dict(network.named_modules())
    calls = [node for node in graph.nodes if node.op == "call_module"]
    used = [modules[str(node.target)] for node in calls]
    pairs = []
    for node, norm in zip(calls, used, strict=True):
        source = node.args[0] if node.args else None
        if type(norm) is not nn.BatchNorm2d or norm.running_mean is None or not isinstance(source, fx.Node):
            continue
        before = modules.get(str(source.target)) if source.op == "call_module" else None
        if type(before) is nn.Conv2d and len(source.users) == 1 and used.count(before) == used.count(norm) == 1:
            pairs.append((str(source.target), str(node.target)))
    return pairs
