"""The Space-Time U-Net (paper section 3.1, Fig. 4a): a spatial U-Net inflated with temporal layers.

Inflation is surgery on the module tree: `inflate` puts each pre-trained spatial layer inside an inflation block, and
each spatial resize inside a temporal one, so the network is down- and up-sampled in space *and* time. The image
model's flow (`UNet2D.__call__`) and its parameters are untouched; `deflate` takes the temporal layers out again.
"""

from flax import nnx

from lumiere_jax.models.conditioning import ExpandedConv
from lumiere_jax.models.temporal import (
    AttentionInflationBlock,
    ConvInflationBlock,
    TemporalConfig,
    TemporalDownsample,
    TemporalUpsample,
)
from lumiere_jax.models.unet2d import Level, UNet2D

_INFLATED = (ConvInflationBlock, AttentionInflationBlock, TemporalDownsample, TemporalUpsample, ExpandedConv)


def inflate(unet: UNet2D, config: TemporalConfig, *, rngs: nnx.Rngs) -> UNet2D:
    """Inflates a text-to-image (or super-resolution) U-Net in place and returns it.

    Convolution-based blocks at every level but the coarsest, attention-based ones there (paper: "only at the coarsest
    resolution"), temporal down- and up-sampling "following each pre-trained spatial resizing module".

    Raises:
      ValueError: `config.strides` does not have one entry for each spatial resize of the U-Net.
    """
    resizes = len(unet.down) - 1
    if len(config.strides) != resizes or min(config.strides, default=1) < 1:
        raise ValueError(
            f"temporal strides {config.strides}: give one positive number for each of the {resizes} spatial resizes"
        )
    # `up` runs from coarse to fine: its first level is the coarsest, its i-th resize mirrors the down path's.
    for i, level in enumerate(unet.down):
        _inflate_level(
            level, TemporalDownsample, config, coarsest=i == resizes, stride=config.strides[i:][:1], rngs=rngs
        )
    unet.middle = AttentionInflationBlock(unet.middle, config, rngs=rngs)
    for i, level in enumerate(unet.up):
        strides = config.strides[::-1][i:][:1]
        _inflate_level(level, TemporalUpsample, config, coarsest=i == 0, stride=strides, rngs=rngs)
    unet.is_inflated = True
    return unet


def _inflate_level(
    level: Level,
    resample: type[TemporalDownsample] | type[TemporalUpsample],
    config: TemporalConfig,
    *,
    coarsest: bool,
    stride: tuple[int, ...],
    rngs: nnx.Rngs,
) -> None:
    has_attention = coarsest or config.attention_levels == "all"
    block = AttentionInflationBlock if has_attention else ConvInflationBlock
    level.layers = nnx.List([block(layer, config, rngs=rngs) for layer in level.layers])
    if level.resize is not None:
        level.resize = resample(level.resize, stride[0], config, rngs=rngs)


def deflate(unet: UNet2D) -> UNet2D:
    """The image model inside an inflated U-Net, applied frame by frame; shares its parameters, leaves `unet` alone.

    Other implementations call this their `ignore_time` mode.
    """
    image = nnx.merge(*nnx.split(unet))
    image.conv_in = _spatial(image.conv_in)
    for level in (*image.down, *image.up):
        level.layers = nnx.List([_spatial(layer) for layer in level.layers])
        level.resize = _spatial(level.resize)
    image.middle = _spatial(image.middle)
    image.is_inflated = False
    return image


def _spatial(module: nnx.Module | None) -> nnx.Module | None:
    return module.spatial if isinstance(module, _INFLATED) else module


def path_in_image_model(path: tuple) -> tuple:
    """Where a spatial layer's parameter of an inflated U-Net is found in that of the image model."""
    return tuple(name for name in path if name != "spatial")
