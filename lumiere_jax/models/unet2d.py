"""The spatial U-Net: exactly what DeepFloyd IF's stages I and II compute (diffusers `UNet2DConditionModel`).

An image is a video of one frame: every layer takes `[batch, frames, height, width, channels]` and folds the frames
into the batch, while the embeddings of time and text have no frame axis and are shared by the frames of a clip. So
text-only work is done once per clip, and inflation (`stunet.py`) needs no second copy of the flow written here.

Parameter names follow diffusers' (`resnet.conv1`, `attention.add_k_proj`, ...), except that a residual block and the
attention after it form one `SpatialLayer`: the "pre-trained spatial layer(s)" that paper Fig. 4 inflates.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from lumiere_jax.models.attention import Attended, attention, frame_by_frame, in_kernel
from lumiere_jax.models.layers import (
    GroupNorm,
    LayerNorm,
    Linear,
    SpatialConv,
    fan_in_third,
)
from lumiere_jax.models.rematerialization import SUM, Rematerializable, checkpointed, rematerialized


@dataclasses.dataclass(frozen=True)
class UNet2DConfig:
    """Sizes and switches of the spatial U-Net, with diffusers' names; per-level tuples go from fine to coarse."""

    in_channels: int = 3
    out_channels: int = 3  # twice the image channels where the variance is learned (DeepFloyd IF: 6)
    block_out_channels: tuple[int, ...] = (16, 32, 64)
    cross_attention: tuple[bool, ...] = (False, True, True)  # SimpleCrossAttn* blocks, else Resnet* blocks
    # On the way down; one more on the way up. An Efficient U-Net (Saharia et al. 2022, "Photorealistic text-to-image
    # diffusion models", appendix B) has 0 at the finest level, where a layer costs most, and most at the coarsest.
    layers_per_block: tuple[int, ...] = (1, 1, 1)
    attention_head_dim: int = 16  # the width of a head
    norm_num_groups: int = 8
    norm_eps: float = 1e-5
    text_dim: int = 64  # diffusers' encoder_hid_dim: the width of the text encoder
    cross_attention_dim: int = 64
    text_norm_groups: int = 32  # diffusers fixes norm_cross to 32 groups
    text_pooling_heads: int = 4  # addition_embed_type_num_heads
    time_embedding_dim: int | None = None  # None: 4 * block_out_channels[0]
    act_fn: Literal["gelu", "silu"] = "gelu"
    time_embedding_act_fn: Literal["gelu", "silu"] | None = None
    noise_level_embedding: bool = False  # class_embed_type == "timestep": stage II's augmentation level
    resnet_skip_time_act: bool = False
    resnet_out_scale_factor: float = 1.0
    mid_block_scale_factor: float = 1.0
    only_cross_attention: bool = False

    def __post_init__(self):
        levels = len(self.block_out_channels)
        for field in ("cross_attention", "layers_per_block"):
            if len(getattr(self, field)) != levels:
                raise ValueError(
                    f"{field}={getattr(self, field)} has {len(getattr(self, field))} entries, but block_out_channels="
                    f"{self.block_out_channels} has {levels} levels: give one entry a level"
                )
        widths = (self.block_out_channels[0], *self.block_out_channels)
        for level, (layers, before, width) in enumerate(zip(self.layers_per_block, widths, widths[1:], strict=False)):
            if layers < 0 or (layers == 0 and width != before):
                raise ValueError(
                    f"layers_per_block={self.layers_per_block}: {layers} at level {level}, where block_out_channels="
                    f"{self.block_out_channels} go from {before} to {width}: only a layer changes the width, give 1"
                )

    @property
    def embedding_dim(self) -> int:
        """The width of the time embedding."""
        return self.time_embedding_dim or 4 * self.block_out_channels[0]

    @property
    def shallow_layers(self) -> int:
        """The layers of the finest level on the way up."""
        return self.layers_per_block[0] + 1

    @property
    def spatial_stride(self) -> int:
        """Height and width are padded to a multiple of this."""
        return 2 ** (len(self.block_out_channels) - 1)


class TextContext(NamedTuple):
    """What cross-attention reads: once per clip, no frame axis."""

    tokens: Float[Array, "batch tokens cross_attention_dim"]
    bias: Float[Array, "batch tokens"] | None


def activation(name: str, x: Array) -> Array:
    """The exact (erf) GELU, or SiLU."""
    return jax.nn.gelu(x, approximate=False) if name == "gelu" else jax.nn.silu(x)


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
        scale, shift = jnp.split(e[:, None, None, None, :], 2, axis=-1)
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


class Level(nnx.Module):
    """The layers of one resolution on the way down or up, and the resize that leaves it."""

    def __init__(self, layers: list[SpatialLayer], resize: SpatialResize | None):
        self.layers = nnx.List(layers)
        self.resize = resize


class UNet2D(Rematerializable):
    """Text-to-image (or super-resolution) diffusion U-Net over the frames of a clip."""

    def __init__(self, config: UNet2DConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.is_inflated = False  # set by `stunet.inflate`
        widths = config.block_out_channels
        self.time_embedding = TimestepEmbedding(config, rngs=rngs)
        self.noise_level_embedding = TimestepEmbedding(config, rngs=rngs) if config.noise_level_embedding else None
        self.text_pooling = TextPooling(config, rngs=rngs)
        self.encoder_hid_proj = Linear(config.text_dim, config.cross_attention_dim, rngs=rngs)
        self.conv_in = SpatialConv(config.in_channels, widths[0], rngs=rngs)
        self.down = nnx.List(_down_levels(config, rngs))
        self.middle = MiddleLayer(widths[-1], config, rngs=rngs)
        self.up = nnx.List(_up_levels(config, rngs))
        self.conv_norm_out = GroupNorm(widths[0], config.norm_num_groups, epsilon=config.norm_eps)
        self.conv_out = SpatialConv(widths[0], config.out_channels, rngs=rngs, kernel_init=fan_in_third)

    def __call__(
        self,
        x: Float[Array, "batch frames height width in_channels"],
        time: Float[Array, " batch"],
        text: Float[Array, "batch tokens text_dim"],
        *,
        text_mask: Array | None = None,
        noise_level: Float[Array, " batch"] | None = None,
    ) -> Float[Array, "batch frames height width out_channels"]:
        """The network's prediction.

        Args:
          x: noisy video (for super-resolution: with the low-resolution video in the last channels), of any number of
            frames. Height and width that `config.spatial_stride` does not divide are padded by repeating the last row
            or column, and the result is cropped.
          time: the schedule's `network_time`, one value per clip.
          text: raw output of the text encoder. DeepFloyd IF attends to padding, so `text_mask` is normally None.
          text_mask: `[batch, tokens]`, 1 where a token is valid; hides the others from cross-attention alone.
          noise_level: the augmentation level of the low-resolution input, in the units of `time`.
        """
        return self.predict_with_deep_features(x, time, text, text_mask=text_mask, noise_level=noise_level)[0]

    def predict_with_deep_features(
        self,
        x: Float[Array, "batch frames height width in_channels"],
        time: Float[Array, " batch"],
        text: Float[Array, "batch tokens text_dim"],
        *,
        text_mask: Array | None = None,
        noise_level: Float[Array, " batch"] | None = None,
        shallow: int = 1,
        deep: Float[Array, "batch deep_frames padded_height padded_width channels"] | None = None,
    ) -> tuple[Array, Array]:
        """The prediction, and what the last `shallow` layers of the way up got from the layers before (Ma et al. 2024).

        That changes slowly while a clip is sampled. With `deep`, its value at an earlier time, only those layers are
        run, and of the way down the ones whose features they are given.

        Args:
          x, time, text, text_mask, noise_level: as for a call.
          shallow: from 1 to `config.shallow_layers`.
          deep: None: all layers are run.

        Returns:
          the prediction as of a call, and the deep features: `deep`, where it is given.

        Raises:
          ValueError: `shallow` is out of range.
        """
        if not 1 <= shallow <= self.config.shallow_layers:
            raise ValueError(f"shallow={shallow}: give 1 to {self.config.shallow_layers} layers")
        height, width = x.shape[2:4]
        embedding, context = self.condition(time, text, text_mask, noise_level)
        numbers = itertools.count()

        def run(layer: nnx.Module, *inputs: Any) -> Array:
            return checkpointed(self.remat.policy_of_block(next(numbers)), _run_layer, layer, *inputs)

        def run_up(layers: list[tuple[nnx.Module, bool]], h: Array) -> Array:
            for layer, is_resize in layers:
                h = run(layer, h, None if is_resize else skips.pop(), embedding, context)
            return h

        down, up = list(_in_order(self.down)), list(_in_order(self.up))
        h = self.conv_in(self._pad(x))
        skips = [h]
        for layer, _ in down if deep is None else down[: shallow - 1]:
            h = run(layer, h, None, embedding, context)
            skips.append(h)
        if deep is None:
            h = run(self.middle, h, None, embedding, context)
            deep = run_up(up[:-shallow], h)
        h = run_up(up[-shallow:], deep)
        output = functools.partial(_run_output, self.config.act_fn)
        h = checkpointed(self.remat.policy_of_block(next(numbers)), output, self.conv_norm_out, self.conv_out, h)
        return h[:, :, :height, :width], deep

    def condition(
        self,
        time: Float[Array, " batch"],
        text: Float[Array, "batch tokens text_dim"],
        text_mask: Array | None,
        noise_level: Float[Array, " batch"] | None,
    ) -> tuple[Float[Array, "batch embedding"], TextContext]:
        """The time embedding (with pooled text and noise level) and the cross-attention context of a clip."""
        if (noise_level is None) != (self.noise_level_embedding is None):
            raise ValueError("noise_level is given if and only if the U-Net has config.noise_level_embedding")
        embedding = self.time_embedding(time, text.dtype)
        if self.noise_level_embedding is not None:
            embedding = embedding + self.noise_level_embedding(noise_level, text.dtype)
        embedding = embedding + self.text_pooling(text)
        if self.config.time_embedding_act_fn is not None:
            embedding = activation(self.config.time_embedding_act_fn, embedding)
        bias = None if text_mask is None else (1.0 - text_mask.astype(text.dtype)) * -10_000.0
        return embedding, TextContext(self.encoder_hid_proj(text), bias)

    def _pad(self, x: Array) -> Array:
        stride = self.config.spatial_stride
        multiples = (1, 1, stride, stride, 1)
        padding = [(0, -size % multiple) for size, multiple in zip(x.shape, multiples, strict=True)]
        return jnp.pad(x, padding, mode="edge")


def _in_order(levels: Sequence[Level]) -> Iterator[tuple[nnx.Module, bool]]:
    """The layers, and whether each is a resize."""
    for level in levels:
        yield from ((layer, False) for layer in level.layers)
        if level.resize is not None:
            yield level.resize, True


def _run_layer(layer: nnx.Module, x: Array, skip: Array | None, embedding: Array, context: TextContext) -> Array:
    """A layer on `x` and, in the channels after it, the skip connection that the way up has."""
    if skip is not None:
        # Temporal up-sampling returns a multiple of its stride: frames past the skip connection's are dropped.
        x = jnp.concatenate([x[:, : skip.shape[1]], skip], axis=-1)
    return layer(x, embedding, context)


def _run_output(act_fn: str, norm: GroupNorm, conv: SpatialConv, x: Array) -> Array:
    return conv(activation(act_fn, norm(x)))


def _down_levels(config: UNet2DConfig, rngs: nnx.Rngs) -> list[Level]:
    levels, width = [], config.block_out_channels[0]
    for i, out in enumerate(config.block_out_channels):
        layers = []
        for _ in range(config.layers_per_block[i]):
            layers.append(SpatialLayer(width, out, config, has_attention=config.cross_attention[i], rngs=rngs))
            width = out
        is_last = i == len(config.block_out_channels) - 1
        levels.append(Level(layers, None if is_last else SpatialResize(out, config, "down", rngs=rngs)))
    return levels


def _up_levels(config: UNet2DConfig, rngs: nnx.Rngs) -> list[Level]:
    skips = [config.block_out_channels[0]]
    for i, out in enumerate(config.block_out_channels):
        resizes = i < len(config.block_out_channels) - 1
        skips += [out] * (config.layers_per_block[i] + resizes)
    levels, width = [], config.block_out_channels[-1]
    for i in reversed(range(len(config.block_out_channels))):
        out, layers = config.block_out_channels[i], []
        for _ in range(config.layers_per_block[i] + 1):
            has_attention = config.cross_attention[i]
            layers.append(SpatialLayer(width + skips.pop(), out, config, has_attention=has_attention, rngs=rngs))
            width = out
        levels.append(Level(layers, None if i == 0 else SpatialResize(out, config, "up", rngs=rngs)))
    return levels
