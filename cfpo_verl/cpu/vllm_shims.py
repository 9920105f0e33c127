"""Two shims for vLLM's processes, loaded through vLLM's plugin group `vllm.general_plugins`.

vLLM calls `activate_if_selected` in every process it starts, before it loads a model.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch

from cfpo_verl import cpu


def keep_plain_weights(layer: torch.nn.Module, remove_weight: bool) -> None:
    """Multiply with the layer's own weights. Same interface as vLLM's `dispatch_cpu_unquantized_gemm`."""
    layer.cpu_linear = torch.nn.functional.linear  # type: ignore[assignment]


def install_plain_weights() -> None:
    """Make vLLM keep its weights as they were loaded.

    Why: on a CPU, vLLM repacks each weight for its matrix kernel and drops the original, so the next weight
    synchronisation fails with "'Parameter' object has no attribute 'weight_loader'". Skipped if vLLM's function does
    not remove weights.
    """
    from vllm.model_executor.layers import utils

    dispatch = getattr(utils, "dispatch_cpu_unquantized_gemm", None)
    if dispatch is not None and "remove_weight" in inspect.signature(dispatch).parameters:
        utils.dispatch_cpu_unquantized_gemm = keep_plain_weights


def cloning_weights(receive_weights: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `BucketedWeightReceiver.receive_weights` so that its callback receives copies of the tensors."""

    @functools.wraps(receive_weights)
    def receive_copies(self: Any, on_bucket_received: Callable[..., Any]) -> Any:
        def on_copied_bucket(weights: list[tuple[str, torch.Tensor]], is_last: bool) -> Any:
            return on_bucket_received([(name, tensor.clone()) for name, tensor in weights], is_last)

        return receive_weights(self, on_copied_bucket)

    return receive_copies


def install_cloning_receiver() -> None:
    """Copy received weights out of shared memory before vLLM keeps them.

    Why: verl passes on views of the shared segment and relies on `.to(device)` to copy them. On a CPU that copies
    nothing, and closing the segment raises BufferError "cannot close exported pointers exist". Skipped if verl copies
    the tensors itself, or if the wrapper is already installed.
    """
    from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightReceiver

    original = BucketedWeightReceiver.receive_weights
    # verl's function, even if our wrapper is installed.
    source = inspect.getsource(inspect.unwrap(original))
    copies_by_itself = ".clone()" in source or "copy=True" in source
    if not copies_by_itself and not hasattr(original, "__wrapped__"):
        BucketedWeightReceiver.receive_weights = cloning_weights(original)


def activate_if_selected() -> None:
    """Install both shims if the CPU platform is selected; otherwise do nothing, and do not import vLLM or verl."""
    if cpu.is_selected():
        install_plain_weights()
        install_cloning_receiver()
