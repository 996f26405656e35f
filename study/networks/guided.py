"""Input gradients of a network, standard and by guided backpropagation (Springenberg et al. 2015).

Shapes: N images, C channels, H and W height and width, K classes.
"""

from __future__ import annotations

import threading
import weakref

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from study.errors import InputError
from study.networks.program import Program
from study.networks.tape import Tape
from study.networks.tracing import Modes, compile_present, compile_program, modes_of

#: What a proof holds for: layers, their types and their parameters (a hook may compute a weight from others).
_Signature = tuple[tuple[str, weakref.ref[nn.Module], type, tuple[str, ...]], ...]
_programs: weakref.WeakKeyDictionary[nn.Module, tuple[_Signature, dict[Modes, Program]]] = weakref.WeakKeyDictionary()
_compiling = threading.Lock()


def prove_coverage(network: nn.Module, name: str | None = None) -> None:
    """Check that every operation of a network has a rule, in train mode and in eval mode; prepare its gradients.

    The network stays as it is. :func:`record` proves a network that was not proven before. ``name`` is the network's
    name in messages. Raises :class:`study.errors.InputError` naming the layer or operation that
    guided backpropagation would miss, or the reason why the network cannot be traced.
    """
    with _compiling:  # tracing sets modes, and restores them
        signature = tuple((p, weakref.ref(m), type(m), tuple(m._parameters)) for p, m in network.named_modules())
        known = _programs.get(network)
        if known is None or known[0] != signature:
            _programs[network] = (signature, compile_program(network, name or type(network).__name__))


def record(
    network: nn.Module,
    x_NCHW: Tensor,
    *,
    dtype: torch.dtype | None = None,
    fused: bool = False,
    through: str = "batch",
) -> Tape:
    """Run the network forward on a :class:`Tape`, from which gradients can be pulled.

    With ``through`` "inference" it runs as in eval mode, whatever its mode is. Raises as :func:`prove_coverage`.
    """
    prove_coverage(network)
    programs, modes = _programs[network][1], modes_of(network)
    if through == "inference":
        modes = (False,) * len(modes)
    if modes not in programs:  # some layers in train mode, others in eval mode
        with _compiling:
            programs[modes] = compile_present(network, type(network).__name__)
    return Tape(programs[modes], network, x_NCHW, dtype=dtype, fused=fused, through=through)


def input_gradients(network: nn.Module, x_NCHW: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients (N, C, H, W) of each image's own cross-entropy, in nats per unit of input: standard and guided.

    That is n times the gradient of the batch mean. In guided backpropagation negative gradient stops at every
    rectifier. In eval mode an image's gradients do not depend on the other images; in train mode they do, through
    batch-norm. Parameters keep their ``.grad``; works under ``torch.no_grad`` and ``torch.inference_mode``.
    """
    with torch.inference_mode(False):
        tape = record(network, x_NCHW.clone() if x_NCHW.is_inference() else x_NCHW)
        g_NK = cross_entropy_gradient(tape.logits_NK, labels_N)
        return tape.pull(g_NK), tape.pull(g_NK, guided=True)


def cross_entropy_gradient(logits_NK: Tensor, labels_N: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Gradient (N, K) of each image's cross-entropy in its logits: softmax minus the (smoothed) target.

    Raises :class:`InputError` where there is not one label per image.
    """
    if labels_N.shape != logits_NK.shape[:1]:
        raise InputError(f"labels: shape {tuple(labels_N.shape)} for {len(logits_NK)} images; give one per image")
    target_NK = F.one_hot(labels_N, logits_NK.shape[1]).to(logits_NK.dtype)
    if label_smoothing:
        target_NK = target_NK * (1 - label_smoothing) + label_smoothing / logits_NK.shape[1]
    return logits_NK.softmax(1) - target_NK
