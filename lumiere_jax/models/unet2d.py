"""The spatial U-Net: exactly what DeepFloyd IF's stages I and II compute (diffusers `UNet2DConditionModel`).

An image is a video of one frame. So text-only work is done once per clip, and inflation (`stunet.py`) needs no second
copy of the flow written here. What it is made of is in `spatial_layers.py`.

Parameter names follow diffusers' (`resnet.conv1`, `attention.add_k_proj`, ...), except that a residual block and the
attention after it form one `SpatialLayer`.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lumiere_jax.models.layers import GroupNorm, Linear, SpatialConv, fan_in_third
from lumiere_jax.models.rematerialization import Rematerializable, checkpointed
from lumiere_jax.models.spatial_layers import (
    MiddleLayer,
    SpatialLayer,
    SpatialResize,
    TextContext,
    TextPooling,
    TimestepEmbedding,
    activation,
)
from lumiere_jax.models.unet2d_config import UNet2DConfig


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
