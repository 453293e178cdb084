"""What a spatial U-Net is built from: sizes and switches."""

import dataclasses
from typing import Literal


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
