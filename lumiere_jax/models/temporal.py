"""The temporal layers of paper Fig. 4b, 4c and Appendix B: all the parameters that Lumiere trains.

    conv inflation block        pre-trained spatial layer -> 2D conv -> norm, act -> 1D temporal conv -> norm, act
    (all levels but the coarsest)    -> zero-initialised projection -> added to the spatial layer's output
    attention inflation block   pre-trained spatial layer -> 1D temporal attention x L
    (the coarsest level)             -> zero-initialised projection -> added to the spatial layer's output
    temporal down-sampling      spatial resize -> identity-initialised 1D temporal conv -> stride
    temporal up-sampling        spatial resize -> frame duplication -> identity-initialised 1D temporal conv

Any number of frames goes through, a single one (an image) too. A stride of s leaves ceil(T / s) of T frames: the first,
the s-th after it, and so on. Duplication then returns a multiple of s, of which the U-Net keeps the first T, as many as
the skip connection has (`UNet2D.__call__`). Temporal convolutions see zeros before the first and after the last frame.

Each *contains* the pre-trained layer it inflates and is called like it, so the U-Net around it need not know. With the
projections at zero and the resamplers at the identity, a clip whose frames are all the same is mapped exactly as the
image model maps its frames. Every parameter here has the type `TemporalParam`; the contained layer keeps its own.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from lumiere_jax.models.attention import Attended, attention
from lumiere_jax.models.layers import (
    GroupNorm,
    Initializer,
    LayerNorm,
    Linear,
    SpatialConv,
    TemporalConv,
    fan_in_normal,
    moments,
    value,
    zeros,
)
from lumiere_jax.models.normalized_conv import add_normalized_product, normalized_conv
from lumiere_jax.models.rematerialization import READ_BY_KERNEL, Rematerializable, rematerialized
from lumiere_jax.models.spatial_layers import MiddleLayer, SpatialLayer, SpatialResize, TextContext, activation


class TemporalParam(nnx.Param):
    """A parameter added by inflation: what the STUNet stage trains, while every other parameter stays frozen."""


@dataclasses.dataclass(frozen=True)
class TemporalConfig:
    """How a spatial U-Net is inflated. Only the strides of a three-level U-Net (2, 2) can be read off the paper."""

    strides: tuple[int, ...] = (2, 2)  # one per spatial resize, fine to coarse (paper Fig. 4a: total 4)
    conv_kernel: int = 3  # not from the paper: frames seen by a temporal convolution
    spatial_kernel: int = 3  # not from the paper: pixels seen by the block's 2D convolution
    norm_groups: int = 8  # not from the paper
    attention_layers: int = 2  # L in Fig. 4c; its value is not from the paper
    attention_head_dim: int = 16  # not from the paper
    resampler_kernel: int = 3  # not from the paper
    resampler_init: Literal["identity", "he", "tent"] = "identity"  # App. B; the others for benchmarks/initialization
    attention_levels: Literal["coarsest", "all"] = "coarsest"  # Fig. 4; "all" for benchmarks/temporal_hierarchy

    def __post_init__(self):
        if self.resampler_init not in _RESAMPLER_KERNELS:
            raise ValueError(f"resampler_init={self.resampler_init!r}: use 'identity' (the paper's), 'he' or 'tent'")
        if self.attention_levels not in ("coarsest", "all"):
            raise ValueError(f"attention_levels={self.attention_levels!r}: use 'coarsest' (the paper's) or 'all'")
        for field in ("conv_kernel", "spatial_kernel", "resampler_kernel"):
            if getattr(self, field) % 2 != 1:
                raise ValueError(f"{field}={getattr(self, field)} must be odd, so that it has a middle")


def identity_kernel(_key: jax.Array, shape: tuple[int, int, int]) -> Float[Array, "taps features features"]:
    """A temporal convolution that returns its input: 1 on the diagonal of the middle tap, 0 elsewhere (App. B)."""
    taps, features, _ = shape
    return jnp.zeros(shape).at[taps // 2].set(jnp.eye(features))


def tent_kernel(_key: jax.Array, shape: tuple[int, int, int]) -> Float[Array, "taps features features"]:
    """A tent over time, [.5, 1, .5] for three taps, as other implementations start with: doubles a still clip."""
    taps, features, _ = shape
    middle = taps // 2
    weights = 1.0 - jnp.abs(jnp.arange(taps) - middle) / (middle + 1)
    return weights[:, None, None] * jnp.eye(features)


_RESAMPLER_KERNELS: dict[str, Initializer] = {
    "identity": identity_kernel,
    # The "standard initialization (He et al., 2015)" that Appendix B compares with.
    "he": jax.nn.initializers.he_normal(in_axis=(0, 1), out_axis=2),
    "tent": tent_kernel,
}


def _resampling_conv(features: int, config: TemporalConfig, rngs: nnx.Rngs) -> TemporalConv:
    init = _RESAMPLER_KERNELS[config.resampler_init]
    return TemporalConv(
        features, features, kernel_size=config.resampler_kernel, kernel_init=init, param=TemporalParam, rngs=rngs
    )


class ConvInflationBlock(Rematerializable):
    """Paper Fig. 4b: a factorised space-time convolution beside the pre-trained layer it contains."""

    def __init__(self, spatial: SpatialLayer, config: TemporalConfig, *, rngs: nnx.Rngs):
        features = spatial.out_features
        self.spatial, self.act_fn = spatial, spatial.act_fn
        self.spatial_conv = SpatialConv(
            features, features, kernel_size=config.spatial_kernel, param=TemporalParam, rngs=rngs
        )
        self.norm_1 = GroupNorm(features, config.norm_groups, param=TemporalParam)
        self.temporal_conv = TemporalConv(
            features, features, kernel_size=config.conv_kernel, param=TemporalParam, rngs=rngs
        )
        self.norm_2 = GroupNorm(features, config.norm_groups, param=TemporalParam)
        self.projection = Linear(features, features, kernel_init=zeros, param=TemporalParam, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch frames height width in"],
        embedding: Float[Array, "batch embedding"],
        context: TextContext,
    ) -> Float[Array, "batch frames height width out"]:
        return self._add_temporal(self.spatial(x, embedding, context))

    @rematerialized("temporal")
    def _add_temporal(
        self, out: Float[Array, "batch frames height width out"]
    ) -> Float[Array, "batch frames height width out"]:
        h = self.spatial_conv(out)
        if self.remat.inflation == "kernel":
            return self._in_kernels(out, h)
        h = activation(self.act_fn, self.norm_1(h))
        h = activation(self.act_fn, self.norm_2(self.temporal_conv(h)))
        return out + self.projection(h)

    def _in_kernels(self, out: Array, h: Array) -> Array:
        conv, projection = (
            (value(layer.kernel, h.dtype), value(layer.bias, h.dtype))
            for layer in (self.temporal_conv, self.projection)
        )
        h = checkpoint_name(h, READ_BY_KERNEL)
        h, of_frames = normalized_conv(h, self.norm_1.folded(moments(h, 2)), *conv, act=self.act_fn)
        return add_normalized_product(out, h, self.norm_2.folded(of_frames), *projection, act=self.act_fn)


class TemporalAttention(Rematerializable):
    """Self-attention over the frames of each pixel, pre-normalised, added to its input.

    Time enters by rotary embedding of queries and keys with the frame index at this level: only differences of frames
    matter, so the same weights apply to clips of other lengths (the encoding is not from the paper).
    """

    def __init__(self, features: int, head_dim: int, *, rngs: nnx.Rngs):
        if features % head_dim or head_dim % 2:
            raise ValueError(f"attention_head_dim={head_dim} must be even and divide the {features} channels")
        self.heads = features // head_dim
        self.norm = LayerNorm(features, param=TemporalParam)
        self.to_qkv = Linear(features, 3 * features, param=TemporalParam, rngs=rngs)
        self.to_out = Linear(features, features, kernel_init=fan_in_normal, param=TemporalParam, rngs=rngs)

    @rematerialized("temporal")
    def __call__(
        self, x: Float[Array, "batch frames height width channels"]
    ) -> Float[Array, "batch frames height width channels"]:
        batch, frames, height, width, channels = x.shape
        pixels = self.to_qkv(self.norm(x)).reshape(batch, frames, height * width, 3, self.heads, -1)
        query, key, value = jnp.moveaxis(pixels.swapaxes(1, 2), 3, 0)
        out = attention(rotate_by_time(query), Attended(rotate_by_time(key), value))
        return x + self.to_out(out.swapaxes(1, 2).reshape(batch, frames, height, width, channels))


def rotate_by_time(x: Float[Array, "*batch frames heads width"]) -> Float[Array, "*batch frames heads width"]:
    """Rotary position embedding (arXiv 2104.09864, eq. 34) over the frames axis, frequencies from 1 down to 1e-4."""
    frames, _, width = x.shape[-3:]
    wide = jnp.promote_types(x.dtype, jnp.float32)
    frequencies = 10_000.0 ** (-jnp.arange(0, width, 2, dtype=wide) / width)
    angles = (jnp.arange(frames, dtype=wide)[:, None] * frequencies)[:, None, :]
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    return jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape)


class AttentionInflationBlock(nnx.Module):
    """Paper Fig. 4c: L stacked temporal attentions beside the pre-trained layer it contains."""

    def __init__(self, spatial: SpatialLayer | MiddleLayer, config: TemporalConfig, *, rngs: nnx.Rngs):
        features = spatial.out_features
        self.spatial = spatial
        self.attentions = nnx.List(
            [TemporalAttention(features, config.attention_head_dim, rngs=rngs) for _ in range(config.attention_layers)]
        )
        self.projection = Linear(features, features, kernel_init=zeros, param=TemporalParam, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch frames height width in"],
        embedding: Float[Array, "batch embedding"],
        context: TextContext,
    ) -> Float[Array, "batch frames height width out"]:
        h = out = self.spatial(x, embedding, context)
        for layer in self.attentions:
            h = layer(h)
        return out + self.projection(h)


class TemporalDownsample(nnx.Module):
    """After a spatial down-sampling: "a 1D temporal convolution (identity initialized) followed by a stride" (App. B).

    It strides; it does not average.
    """

    def __init__(self, spatial: SpatialResize, stride: int, config: TemporalConfig, *, rngs: nnx.Rngs):
        self.spatial, self.stride = spatial, stride
        self.conv = _resampling_conv(spatial.out_features, config, rngs)

    def __call__(
        self,
        x: Float[Array, "batch frames height width channels"],
        embedding: Float[Array, "batch embedding"],
        context: TextContext,
    ) -> Float[Array, "batch new_frames new_height new_width channels"]:
        return self.conv(self.spatial(x, embedding, context))[:, :: self.stride]


class TemporalUpsample(nnx.Module):
    """After a spatial up-sampling: "frame duplication followed by a 1D temporal convolution (identity initialized)"."""

    def __init__(self, spatial: SpatialResize, stride: int, config: TemporalConfig, *, rngs: nnx.Rngs):
        self.spatial, self.stride = spatial, stride
        self.conv = _resampling_conv(spatial.out_features, config, rngs)

    def __call__(
        self,
        x: Float[Array, "batch frames height width channels"],
        embedding: Float[Array, "batch embedding"],
        context: TextContext,
    ) -> Float[Array, "batch new_frames new_height new_width channels"]:
        return self.conv(self.spatial(x, embedding, context).repeat(self.stride, axis=1))


def gate_norms(temporal: dict) -> dict[str, Float[Array, ""]]:
    """How far each inflation block has opened: the Frobenius norm of its projection, which starts at zero.

    Args:
      temporal: the trained parameters of an inflated model, as `parameter_partition.split` gives them.

    Returns:
      one number for each block, by its place in the model, as in `unet/down_blocks/0/resnets/0`.
    """

    def norms(tree: dict, path: tuple[str, ...]) -> dict[str, Array]:
        found = {}
        for name, child in tree.items():
            if name == "projection":
                squares = [jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(child)]
                found["/".join(path)] = jnp.sqrt(sum(squares))
            elif isinstance(child, dict):
                found |= norms(child, (*path, str(name)))
        return found

    return norms(temporal, ())
