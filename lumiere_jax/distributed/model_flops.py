"""Model FLOPs: what a program must compute, and how fast the devices could at best.

Counted are the operations of the program as it is written, by XLA's cost analysis before any optimisation; a
multiply-add is two, and elementwise operations count too. Model FLOP utilisation (Chowdhery et al., arXiv 2204.02311,
appendix B) asks for the operations that the *model* needs: hand over a step without rematerialisation and without a
loop over parts of the batch, as recomputed operations would be counted as work, and the body of a loop once.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# FLOP/s of one JAX device with dense bfloat16 matrices, by `Device.device_kind`. TPUs: Google Cloud's pages on each
# version ("Peak compute per chip (bf16)"); a JAX device is one chip, of TPU7x half a chip. GPUs: NVIDIA's datasheets of
# A100, H100 and H200, whose numbers "with sparsity" are twice these. What is not here has no known peak: no guess.
PEAK_FLOPS: dict[str, float] = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 2307e12 / 2,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989.4e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989.4e12,
}

Video = Float[Array, "batch frames height width 3"]
Text = Int[Array, "batch tokens"] | Float[Array, "batch tokens text_dim"]


def peak_flops(devices: Sequence[Any]) -> float | None:
    """FLOP/s of all `devices` together, in bfloat16; None where one has no known peak (a CPU)."""
    peaks = [PEAK_FLOPS.get(device.device_kind) for device in devices]
    return None if None in peaks else sum(peaks)


def count_flops(function: Callable[..., Any], *arguments: Any) -> float:
    """FLOPs of one call, over all devices together: nothing is compiled or run.

    Args:
      function: to trace. It is lowered for a CPU, the one platform for which JAX counts without compiling.
      arguments: of the function: arrays, or `jax.ShapeDtypeStruct`; only shapes and types count.

    Raises:
      RuntimeError: JAX was started without its CPU platform (JAX_PLATFORMS).
    """
    shapes = jax.eval_shape(lambda *leaves: leaves, *arguments)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        return jax.jit(function).lower(*shapes).cost_analysis()["flops"]


def seconds_at_peak(
    step: Callable[..., Any], state: Any, frozen: Any, batch: tuple[Video, Text], seed: int
) -> Callable[[tuple[int, ...]], float] | None:
    """How long a training step would take at the devices' peak: over the time that it takes, that is the utilisation.

    Args:
      step: the training step, not rematerialised, as a function of the other arguments.
      state, frozen, seed: what it is called with.
      batch: any batch: its `video` may have another number of clips and frames.

    Returns:
      a function of the shape `[batch, frames, height, width, 3]` of a batch's video, which traces the step once for
      each shape; None where a device's peak is not known, or JAX has no CPU to count for (which is said).
    """
    peak = peak_flops(jax.devices())
    if peak is None:
        return None
    try:
        jax.local_devices(backend="cpu")
    except RuntimeError:
        print("model FLOP utilisation is not shown: JAX counts FLOPs for a CPU. Add cpu to JAX_PLATFORMS")
        return None
    state, frozen, (_, text), seed = jax.eval_shape(lambda *leaves: leaves, state, frozen, tuple(batch), seed)

    @functools.cache
    def seconds(video_shape: tuple[int, ...]) -> float:
        parts = (
            jax.ShapeDtypeStruct(video_shape, jnp.float32),
            jax.ShapeDtypeStruct((video_shape[0], *text.shape[1:]), text.dtype),
        )
        return count_flops(step, state, frozen, type(batch)(*parts), seed) / peak

    return seconds
