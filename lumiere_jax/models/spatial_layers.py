"""What the spatial U-Net is made of: embeddings of time and text, residual blocks, attention within a frame.

Every layer takes `[batch, frames, height, width, channels]` and folds the frames into the batch; the embeddings of
time and text have no frame axis and are shared by a clip's frames. A residual block and the attention after it are one
`SpatialLayer`: the "pre-trained spatial layer(s)" that paper Fig. 4 inflates.
"""

import functools
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from lumiere_jax.models.attention import Attended, attention, frame_by_frame, in_kernel
from lumiere_jax.models.layers import GroupNorm, LayerNorm, Linear, SpatialConv, fan_in_third
from lumiere_jax.models.rematerialization import SUM, Rematerializable, rematerialized
from lumiere_jax.models.unet2d_config import UNet2DConfig


class TextContext(NamedTuple):
    """What cross-attention reads: once per clip, no frame axis."""

    tokens: Float[Array, "batch tokens cross_attention_dim"]
    bias: Float[Array, "batch tokens"] | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def activation(name: str, x: Array) -> Array:
    """The exact (erf) GELU, or SiLU. Its gradient keeps the input alone, where JAX's own keeps two values more."""
    return jax.nn.gelu(x, approximate=False) if name == "gelu" else jax.nn.silu(x)


def _activation_forward(name: str, x: Array) -> tuple[Array, Array]:
    return activation(name, x), x


def _activation_backward(name: str, x: Array, gradient: Array) -> tuple[Array]:
    if name == "gelu":  # x P(x), with P the standard normal distribution
        probability = 0.5 * jax.lax.erfc(-math.sqrt(0.5) * x)
        density = math.sqrt(0.5 / math.pi) * jnp.exp(-0.5 * jnp.square(x))
        return (gradient * (probability + x * density),)
    # As a tanh: were it written as in the forward pass, XLA would compute it once, and keep it.
    sigmoid = 0.5 + 0.5 * jnp.tanh(0.5 * x)
    return (gradient * sigmoid * (1.0 + x * (1.0 - sigmoid)),)


activation.defvjp(_activation_forward, _activation_backward)


def sinusoidal_embedding(value: Float[Array, " batch"], width: int) -> Float[Array, "batch width"]:
    """`[cos(v f), sin(v f)]` for geometric frequencies f from 1 down to 1e-4 (flip_sin_to_cos, freq_shift 0)."""
    half = width // 2
    frequencies = jnp.exp(-math.log(10_000.0) * jnp.arange(half, dtype=value.dtype) / half)
    angles = value[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimestepEmbedding(nnx.Module):
    """Sinusoids, then an MLP; stage II has a second one for the noise level of its low-resolution input."""

    def __init__(self, config: UNet2DConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.linear_1 = Linear(config.block_out_channels[0], config.embedding_dim, rngs=rngs)
        self.linear_2 = Linear(config.embedding_dim, config.embedding_dim, rngs=rngs)

    def __call__(self, value: Float[Array, " batch"], dtype: jnp.dtype) -> Float[Array, "batch embedding"]:
        x = sinusoidal_embedding(value, self.config.block_out_channels[0]).astype(dtype)
        return self.linear_2(activation(self.config.act_fn, self.linear_1(x)))


class TextPooling(nnx.Module):
    """Attention pooling of the raw text embeddings, added to the time embedding (diffusers `TextTimeEmbedding`)."""

    def __init__(self, config: UNet2DConfig, *, rngs: nnx.Rngs):
        width = config.text_dim
        self.heads = config.text_pooling_heads
        self.norm1 = LayerNorm(width)
        self.positional_embedding = nnx.Param(jax.random.normal(rngs.params(), (1, width)) * width**-0.5)
        self.q_proj = Linear(width, width, rngs=rngs)
        self.k_proj = Linear(width, width, rngs=rngs)
        self.v_proj = Linear(width, width, rngs=rngs)
        self.proj = Linear(width, config.embedding_dim, rngs=rngs)
        self.norm2 = LayerNorm(config.embedding_dim)

    def __call__(self, text: Float[Array, "batch tokens text_dim"]) -> Float[Array, "batch embedding"]:
        tokens = self.norm1(text)
        cls = tokens.mean(1, keepdims=True) + self.positional_embedding[...].astype(text.dtype)
        tokens = jnp.concatenate([cls, tokens], axis=1)
        q, k, v = (
            _split_heads(projection(x), self.heads)
            for projection, x in ((self.q_proj, cls), (self.k_proj, tokens), (self.v_proj, tokens))
        )
        return self.norm2(self.proj(attention(q, Attended(k, v)).reshape(len(text), -1)))


class ResnetBlock(Rematerializable):
    """Two convolutions, the time embedding as scale and shift between them; optionally resized in space first."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        config: UNet2DConfig,
        *,
        rngs: nnx.Rngs,
        resize: Literal["down", "up"] | None = None,
        scale_factor: float | None = None,
    ):
        self.config, self.resize = config, resize
        self.scale_factor = config.resnet_out_scale_factor if scale_factor is None else scale_factor
        self.norm1 = GroupNorm(in_features, config.norm_num_groups, epsilon=config.norm_eps)
        self.conv1 = SpatialConv(in_features, out_features, rngs=rngs)
        self.time_emb_proj = Linear(config.embedding_dim, 2 * out_features, rngs=rngs)
        self.norm2 = GroupNorm(out_features, config.norm_num_groups, epsilon=config.norm_eps)
        self.conv2 = SpatialConv(out_features, out_features, rngs=rngs, kernel_init=fan_in_third)
        widths_differ = in_features != out_features
        self.conv_shortcut = SpatialConv(in_features, out_features, kernel_size=1, rngs=rngs) if widths_differ else None

    @rematerialized("spatial")
    def __call__(
        self, x: Float[Array, "batch frames height width in"], embedding: Float[Array, "batch embedding"]
    ) -> Float[Array, "batch frames new_height new_width out"]:
        act = self.config.act_fn
        h = activation(act, self.norm1(x))
        x, h = resize_frames(x, self.resize), resize_frames(h, self.resize)
        h = self.conv1(h)
        e = self.time_emb_proj(embedding if self.config.resnet_skip_time_act else activation(act, embedding))
        scale, shift = jnp.split(e[:, None, :], 2, axis=-1)
        h = self.conv2(activation(act, self.norm2(h, (scale, shift))))
        shortcut = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return checkpoint_name((shortcut + h) / self.scale_factor, SUM)


def resize_frames(
    x: Float[Array, "batch frames height width channels"], resize: Literal["down", "up"] | None
) -> Float[Array, "batch frames new_height new_width channels"]:
    """Halve by the mean of 2x2 pixels, double by repetition, or leave."""
    batch, frames, height, width, channels = x.shape
    if resize == "down":
        return x.reshape(batch, frames, height // 2, 2, width // 2, 2, channels).mean((3, 5))
    if resize == "up":
        return x.repeat(2, axis=2).repeat(2, axis=3)
    return x


_MANY_PIXELS = 64 * 64  # of a frame, from which on `remat.attention` counts
_LARGE_ATTENTION = {"whole": attention, "frame_by_frame": frame_by_frame, "kernel": in_kernel}


class SpatialAttention(Rematerializable):
    """Each pixel of a frame attends to the clip's text and, unless `only_cross_attention`, to its frame's pixels."""

    def __init__(self, features: int, config: UNet2DConfig, *, rngs: nnx.Rngs):
        if features % config.attention_head_dim:
            raise ValueError(f"{features} channels do not divide into attention_head_dim={config.attention_head_dim}")
        self.heads = features // config.attention_head_dim
        self.group_norm = GroupNorm(features, config.norm_num_groups)
        self.norm_cross = GroupNorm(config.cross_attention_dim, config.text_norm_groups, axes=1)
        self.to_q = Linear(features, features, rngs=rngs)
        self.to_k = None if config.only_cross_attention else Linear(features, features, rngs=rngs)
        self.to_v = None if config.only_cross_attention else Linear(features, features, rngs=rngs)
        self.add_k_proj = Linear(config.cross_attention_dim, features, rngs=rngs)
        self.add_v_proj = Linear(config.cross_attention_dim, features, rngs=rngs)
        self.to_out = Linear(features, features, rngs=rngs, kernel_init=fan_in_third)

    @rematerialized("spatial")
    def __call__(
        self, x: Float[Array, "batch frames height width channels"], context: TextContext
    ) -> Float[Array, "batch frames height width channels"]:
        batch, frames, height, width, channels = x.shape
        h = self.group_norm(x).reshape(batch, frames, height * width, channels)
        text = self.norm_cross(context.tokens)
        query = _split_heads(self.to_q(h), self.heads)
        bias = None if context.bias is None else context.bias[:, None, None, None, :]
        text_key, text_value = (
            _per_frame(_split_heads(projection(text), self.heads), frames)
            for projection in (self.add_k_proj, self.add_v_proj)
        )
        sources = [Attended(text_key, text_value, bias)]
        if self.to_k is not None:
            sources.append(Attended(_split_heads(self.to_k(h), self.heads), _split_heads(self.to_v(h), self.heads)))
        attend = _LARGE_ATTENTION[self.remat.attention] if height * width >= _MANY_PIXELS else attention
        out = attend(query, *sources).reshape(batch, frames, height, width, channels)
        return self.to_out(out) + x


def _split_heads(x: Float[Array, "*batch tokens channels"], heads: int) -> Float[Array, "*batch tokens heads width"]:
    return x.reshape(*x.shape[:-1], heads, -1)


def _per_frame(x: Float[Array, "batch ..."], frames: int) -> Float[Array, "batch frames ..."]:
    return jnp.broadcast_to(x[:, None], (x.shape[0], frames, *x.shape[1:]))


class SpatialLayer(nnx.Module):
    """A residual block and, on levels that have it, attention: one "pre-trained spatial layer" of paper Fig. 4."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        config: UNet2DConfig,
        *,
        has_attention: bool,
        rngs: nnx.Rngs,
    ):
        self.out_features, self.act_fn = out_features, config.act_fn
        self.resnet = ResnetBlock(in_features, out_features, config, rngs=rngs)
        self.attention = SpatialAttention(out_features, config, rngs=rngs) if has_attention else None

    def __call__(
        self,
        x: Float[Array, "batch frames height width in"],
        embedding: Float[Array, "batch embedding"],
        context: TextContext,
    ) -> Float[Array, "batch frames height width out"]:
        h = self.resnet(x, embedding)
        return h if self.attention is None else self.attention(h, context)


class SpatialResize(nnx.Module):
    """A residual block that halves or doubles height and width: the "pre-trained spatial resizing module"."""

    def __init__(self, features: int, config: UNet2DConfig, resize: Literal["down", "up"], *, rngs: nnx.Rngs):
        self.out_features, self.resize = features, resize
        self.resnet = ResnetBlock(features, features, config, rngs=rngs, resize=resize)

    def __call__(
        self,
        x: Float[Array, "batch frames height width channels"],
        embedding: Float[Array, "batch embedding"],
        context: TextContext,
    ) -> Float[Array, "batch frames new_height new_width channels"]:
        return self.resnet(x, embedding)


class MiddleLayer(nnx.Module):
    """Residual block, attention, residual block at the coarsest level."""

    def __init__(self, features: int, config: UNet2DConfig, *, rngs: nnx.Rngs):
        self.out_features = features
        factor = config.mid_block_scale_factor
        self.resnet_0 = ResnetBlock(features, features, config, rngs=rngs, scale_factor=factor)
        self.attention = SpatialAttention(features, config, rngs=rngs)
        self.resnet_1 = ResnetBlock(features, features, config, rngs=rngs, scale_factor=factor)

    def __call__(
        self,
        x: Float[Array, "batch frames height width channels"],
        embedding: Float[Array, "batch embedding"],
        context: TextContext,
    ) -> Float[Array, "batch frames height width channels"]:
        return self.resnet_1(self.attention(self.resnet_0(x, embedding), context), embedding)
