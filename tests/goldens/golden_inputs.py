"""The golden models, their weights and their inputs: built alike by the script that makes the goldens and by the tests.

Neither weights nor inputs are stored. Both follow from a tensor's name through the raw output of a PCG64 generator,
which NumPy keeps the same in all versions (its distributions it does not). Nothing is trivial: norm scales are off 1,
biases off 0, texts have the small variance of real T5 embeddings (so that the LayerNorm's epsilon shows), and pictures
are not square.
"""

import math
import zlib

import numpy as np

# Sizes that all models share. Not square, and no attention level has as many pixels as the text has tokens.
BATCH, HEIGHT, WIDTH, TOKENS = 2, 8, 16, 7
# Clip 0 at time 0: diffusers' sinusoids are float32 even in a float64 model, and exact there alone.
TIMESTEP = np.array([0, 731], np.int64)
NOISE_LEVEL = np.array([0, 250], np.int64)


def mask(tokens: int = TOKENS) -> np.ndarray:
    """`[batch, tokens]`: the first clip's text is three tokens shorter than the second's."""
    return (np.arange(tokens) < np.array([[tokens - 4], [tokens - 1]])).astype(np.int64)


def uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers in [-1, 1) with 24 bits, exact in float32; the same for the same name and shape."""
    raw = np.random.PCG64(zlib.crc32(name.encode())).random_raw(math.prod(shape))
    return ((raw >> np.uint64(40)).astype(np.float32) / 2**23 - 1).reshape(shape)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 weight of a PyTorch tensor; kernels `[out, in, ...]` keep the variance of what they multiply."""
    values = uniform(name, shape)
    if len(shape) == 1:
        return 0.3 * values + (0 if name.endswith("bias") else 1)
    if name.endswith(("positional_embedding", "relative_attention_bias.weight")):
        return values  # not kernels
    return values * np.float32(math.sqrt(3 / math.prod(shape[1:])))


def inputs(in_channels: int, text_dim: int, tokens: int = TOKENS) -> tuple[np.ndarray, np.ndarray]:
    """A noisy picture `[batch, channels, height, width]` and raw text embeddings `[batch, tokens, text_dim]`."""
    return (
        2 * uniform("sample", (BATCH, in_channels, HEIGHT, WIDTH)),
        0.1 * uniform("encoder_hidden_states", (BATCH, tokens, text_dim)),
    )


# What DeepFloyd IF's configs have in common and diffusers' defaults do not.
_FAMILY = {
    "addition_embed_type": "text",
    "cross_attention_norm": "group_norm",
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "out_channels": 6,
    "resnet_time_scale_shift": "scale_shift",
}


def _blocks(*has_attention: bool) -> dict[str, list[str]]:
    down = ["SimpleCrossAttnDownBlock2D" if has else "ResnetDownsampleBlock2D" for has in has_attention]
    up = ["SimpleCrossAttnUpBlock2D" if has else "ResnetUpsampleBlock2D" for has in reversed(has_attention)]
    return {"down_block_types": down, "up_block_types": up}


# Keyword arguments of diffusers' UNet2DConditionModel. norm_cross has 32 groups whatever norm_num_groups is.
UNETS = {
    "stage_1": _FAMILY
    | _blocks(False, True, True)
    | {
        "in_channels": 3,
        "block_out_channels": [8, 16, 24],
        "layers_per_block": 2,
        "act_fn": "gelu",
        "norm_num_groups": 8,
        "attention_head_dim": 8,
        "encoder_hid_dim": 24,
        "cross_attention_dim": 32,
        "addition_embed_type_num_heads": 4,
    },
    "stage_2": _FAMILY
    | _blocks(False, False, True)
    | {
        "in_channels": 6,
        "block_out_channels": [8, 16, 24],
        "layers_per_block": [1, 2, 1],
        "act_fn": "gelu",
        "norm_num_groups": 4,
        "attention_head_dim": 12,
        "encoder_hid_dim": 24,
        "cross_attention_dim": 64,
        "addition_embed_type_num_heads": 3,
        "class_embed_type": "timestep",
        "time_embedding_act_fn": "gelu",
        "time_embedding_dim": 20,
        "resnet_skip_time_act": True,
        "resnet_out_scale_factor": 1 / 0.7071,
        "mid_block_scale_factor": 1 / 0.7071,
    },
    "sixteen_groups": _FAMILY
    | _blocks(True, True)
    | {
        "in_channels": 3,
        "block_out_channels": [16, 32],
        "layers_per_block": [2, 1],
        "act_fn": "silu",
        "norm_num_groups": 16,
        "norm_eps": 1e-3,
        "attention_head_dim": 4,
        "encoder_hid_dim": 12,
        "cross_attention_dim": 96,
        "addition_embed_type_num_heads": 2,
        "class_embed_type": "timestep",
        "time_embedding_act_fn": "silu",
    },
    "only_cross_attention": _FAMILY
    | _blocks(False, True)
    | {
        "in_channels": 3,
        "block_out_channels": [8, 16],
        "layers_per_block": 1,
        "act_fn": "gelu",
        "norm_num_groups": 2,
        "attention_head_dim": 16,
        "encoder_hid_dim": 12,
        "cross_attention_dim": 64,
        "addition_embed_type_num_heads": 2,
        "only_cross_attention": True,
        "mid_block_scale_factor": 1 / 0.7071,
    },
    # A config of an older diffusers: no key where the default is meant, not even encoder_hid_dim_type.
    "older": _FAMILY
    | _blocks(False, True)
    | {
        "in_channels": 3,
        "block_out_channels": [32, 64],
        "layers_per_block": 1,
        "encoder_hid_dim": 64,
        "cross_attention_dim": 32,
    },
}
# diffusers crashes on a masked text with as many tokens as an attention level has pixels (it does not pad the mask to
# the keys then), and on any masked text with only_cross_attention (it pads where nothing is appended).
PIXELS_OF_THE_COARSEST_LEVEL = (HEIGHT // 4) * (WIDTH // 4)

T5 = {
    "vocab_size": 40,
    "d_model": 16,
    "num_heads": 2,
    "d_kv": 6,
    "d_ff": 20,
    "num_layers": 2,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}
T5_LENGTHS = np.array([26, 7, 1])


def t5_tokens() -> tuple[np.ndarray, np.ndarray]:
    """Token ids `[3, 26]` padded with 0, and their mask."""
    shape = (len(T5_LENGTHS), max(T5_LENGTHS))
    valid = np.arange(shape[1]) < T5_LENGTHS[:, None]
    ids = 2 + ((uniform("input_ids", shape) + 1) / 2 * (T5["vocab_size"] - 2)).astype(np.int64)
    return np.where(valid, ids, 0), valid.astype(np.int64)
