"""Kernels kept as 8-bit integers: half of bfloat16's memory. The computation stays in the network's type.

Each output channel has its scale, so that its largest weight is 127: every weight is then off by at most 1/254 of it.
What that costs in quality is in docs/sampling.md. Not from the paper.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float
from jaxtyping import Int8 as Int8Array

_LARGEST = 127


class Int8(NamedTuple):
    """A kernel: `values * scale`, rounded; the value of an `nnx.Param`."""

    values: Int8Array[Array, "*inputs out"]
    scale: Float[Array, " out"]

    def astype(self, dtype: jnp.dtype) -> Float[Array, "*inputs out"]:
        """The kernel, as numbers of this type."""
        return self.values.astype(dtype) * self.scale.astype(dtype)


def to_int8(module: nnx.Module) -> nnx.Module:
    """Turns every kernel of `module` into an `Int8`, in place, and returns the module.

    Biases, norms and embeddings, which are few numbers, stay. For sampling alone: integers have no gradient.
    """
    for _, child in nnx.iter_modules(module):
        if isinstance(kernel := vars(child).get("kernel"), nnx.Variable):
            kernel.set_value(_rounded(kernel[...]))
    return module


@jax.jit
def _rounded(kernel: Float[Array, "*inputs out"]) -> Int8:
    scale = jnp.abs(kernel.astype(jnp.float32)).max(range(kernel.ndim - 1)) / _LARGEST
    scale = jnp.where(scale == 0.0, 1.0, scale)
    return Int8(jnp.round(kernel / scale).astype(jnp.int8), scale)
