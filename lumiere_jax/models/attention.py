"""Attention: all of it at once, a frame at a time, or in a kernel that keeps the attention weights on the chip.

The weights of one layer over the 64x64 pixels of 40 frames, 10 heads, are 27 GB in float32. A frame at a time they fit,
but still go to memory and back for each step of the softmax: about a third of `if_l`'s training step on v5e. The
kernel (splash attention, which comes with JAX) works on blocks of them that never leave the chip. It is for TPUs.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask
from jaxtyping import Array, Float

from lumiere_jax.distributed import partitioning
from lumiere_jax.models.rematerialization import ATTENDED


class Attended(NamedTuple):
    """What queries attend to: keys, values and a bias `[*batch, heads, queries, keys]` or None."""

    key: Float[Array, "*batch keys heads width"]
    value: Float[Array, "*batch keys heads width"]
    bias: Array | None = None


def attention(
    query: Float[Array, "*batch queries heads width"], *sources: Attended
) -> Float[Array, "*batch queries heads width"]:
    """Scaled dot-product attention to all sources at once, softmax in float32 or wider.

    The sources are not concatenated: where one of them is divided over devices, that would move all of it.
    """
    wide = jnp.promote_types(query.dtype, jnp.float32)
    query = query * query.shape[-1] ** -0.5
    logits = [jnp.einsum("...qhd,...khd->...hqk", query, key).astype(wide) for key, _, _ in sources]
    logits = [part if bias is None else part + bias for part, (_, _, bias) in zip(logits, sources, strict=True)]
    largest = functools.reduce(jnp.maximum, [part.max(-1, keepdims=True) for part in logits])
    weights = [jnp.exp(part - jax.lax.stop_gradient(largest)) for part in logits]
    total = sum(part.sum(-1) for part in weights)
    # Divided by the total last: there are fewer values then.
    out = sum(
        jnp.einsum("...hqk,...khd->...qhd", part.astype(value.dtype), value).astype(wide)
        for part, (_, value, _) in zip(weights, sources, strict=True)
    )
    return (out / jnp.swapaxes(total, -1, -2)[..., None]).astype(query.dtype)


def frame_by_frame(
    query: Float[Array, "batch frames queries heads width"], *sources: Attended
) -> Float[Array, "batch frames queries heads width"]:
    """`attention` to one frame after the other, also in the backward pass."""
    frames_first = jax.tree.map(lambda array: array.swapaxes(0, 1), (query, *sources))
    out = jax.lax.map(jax.checkpoint(lambda frame: attention(*frame)), frames_first)
    return out.swapaxes(0, 1)


def in_kernel(
    query: Float[Array, "batch frames queries heads width"], *sources: Attended
) -> Float[Array, "batch frames queries heads width"]:
    """`splash` in a program for TPUs; in one for other devices `frame_by_frame`.

    Raises:
      ValueError: a source has a bias.
    """
    return jax.lax.platform_dependent(query, *sources, tpu=splash, default=frame_by_frame)


class _Blocks(NamedTuple):
    """What the kernel has on the chip at a time, at most: all keys of a 64x64 frame and its text in one block."""

    queries: int
    keys: int
    piece: int  # of these keys, whose attention weights are there


# As large as 16 MB of fast memory allow; the schedules of others are in docs/performance.md.
FORWARD, _GRADIENT = _Blocks(512, 4224, 1408), _Blocks(256, 4224, 384)
_GRADIENT_ON = {
    "TPU v4": _Blocks(512, 1408, 1408),  # the queries' gradient then comes in parts, which are added up
    "TPU v6 lite": _Blocks(512, 4224, 1408),  # has more fast memory
}
_LANES = 128
# Keys that only fill up are hidden by one more channel of queries and keys: channels come in tiles of 16, and have room
# up to 128 in the matrix unit. The kernel's own way, segments, takes operations for each weight.
_HIDING_CHANNELS, _HIDDEN = 16, -30_000.0
# In memory, as a head of 64 channels in the last place would take as much of it as 128.
_TOKENS_LAST = splash_attention_kernel.QKVLayout.SEQ_MINOR


def splash(
    query: Float[Array, "batch frames queries heads width"], *sources: Attended, interpret: bool = False
) -> Float[Array, "batch frames queries heads width"]:
    """`attention`, block after block: the weights of a block of queries and keys exist at a time.

    In a function that is traced on a mesh the devices that share a frame's rows give each other their share of the
    frames' heads for it, whole: that is less to send than all keys to each.

    Args:
      query, sources: as for `attention`, without biases.
      interpret: runs the kernel without a TPU, very slowly.

    Raises:
      ValueError: a source has a bias.
    """
    if any(source.bias is not None for source in sources):
        raise ValueError("remat.attention='kernel' has no bias, and so no text_mask: use 'frame_by_frame'")
    devices = partitioning.devices_of_rows()

    def divisible(array: Array) -> Array:
        return jnp.pad(array, [(0, 0), (0, 0), (0, -array.shape[2] % devices), (0, 0), (0, 0)])

    tokens = [source.key.shape[2] for source in sources]
    pairs = [(divisible(source.key), divisible(source.value)) for source in sources]
    attend = functools.partial(_splash_on_device, devices, tokens, interpret)
    return partitioning.on_rows(attend)((query, pairs), (), ())


def _splash_on_device(
    devices: int,
    tokens: list[int],
    interpret: bool,
    divided: tuple[Array, list[tuple[Array, Array]]],
    _of_clips: tuple[()],
    _shared: tuple[()],
) -> Array:
    query, pairs = divided
    batch, frames, queries, heads, width = query.shape
    count = batch * frames * heads

    def of_rows(array: Array) -> list[Array]:
        """The device's share of heads of frames, `[heads, width, tokens]`: the tokens of each device's rows."""
        array = array.transpose(0, 1, 3, 4, 2).reshape(count, width, -1).astype(query.dtype)
        array = jnp.pad(array, [(0, -count % devices), (0, 0), (0, 0)])
        return list(partitioning.exchanged(array.reshape(devices, -1, *array.shape[1:])))

    def joined(parts: list[Array], size: int, channel: np.ndarray | None = None) -> Array:
        """One after the other, then zeros; a channel more, a value for each token, and zeros up to whole tiles."""
        missing = size - sum(part.shape[2] for part in parts)
        x = jnp.concatenate([*parts, jnp.zeros((len(parts[0]), width, missing), query.dtype)], axis=2)
        if channel is None:
            return x
        channels = np.zeros((_HIDING_CHANNELS, size), query.dtype)
        channels[0] = channel
        return jnp.concatenate([x, jnp.broadcast_to(channels, (len(x), *channels.shape))], axis=1)

    keys, values = ([part for array in of_all for part in of_rows(array)] for of_all in zip(*pairs, strict=True))
    is_key = np.concatenate(
        [np.arange(devices * key.shape[2]) < of_source for (key, _), of_source in zip(pairs, tokens, strict=True)]
    )
    of_queries, all_queries = whole_blocks(devices * queries, FORWARD.queries)
    of_keys, all_keys = whole_blocks(len(is_key), FORWARD.keys)
    hidden = np.where(np.pad(is_key, (0, all_keys - len(is_key))), 0.0, _HIDDEN)
    operands = (
        joined(of_rows(query * width**-0.5), all_queries, np.ones(all_queries)),
        joined(keys, all_keys, hidden),
        joined(values, all_keys),
    )
    kernel = splash_attention_kernel.make_splash_mha_single_device(
        splash_attention_mask.MultiHeadMask([splash_attention_mask.FullMask((all_queries, all_keys))]),
        block_sizes=block_sizes(of_queries, of_keys),
        residual_checkpoint_name=ATTENDED,
        interpret=interpret,
    )
    out = jax.vmap(kernel)(*(operand.swapaxes(1, 2)[:, None] for operand in operands))[:, 0]
    of_devices = jnp.stack(jnp.split(out[:, : devices * queries], devices, axis=1))
    out = partitioning.exchanged(of_devices).reshape(-1, queries, width)[:count]
    return jnp.moveaxis(out.reshape(batch, frames, heads, queries, width), 2, 3)


def whole_blocks(tokens: int, largest: int) -> tuple[int, int]:
    """The smallest block, whole lanes, with which so many tokens are as few blocks as with the largest.

    Returns:
      the block, and how many tokens whole blocks are.
    """
    blocks = math.ceil(tokens / largest)
    block = _LANES * math.ceil(tokens / (blocks * _LANES))
    return block, blocks * block


def block_sizes(of_queries: int, of_keys: int) -> splash_attention_kernel.BlockSizes:
    """Those of the kernel, for blocks as `whole_blocks` gives them."""

    def largest(block: int, limit: int) -> int:
        """Of the block's divisors that are whole lanes."""
        return max(size for size in range(_LANES, limit + 1, _LANES) if block % size == 0)

    of_gradient = _GRADIENT_ON.get(partitioning.device_kind(), _GRADIENT)
    return splash_attention_kernel.BlockSizes(
        block_q=of_queries,
        block_kv=of_keys,
        block_kv_compute=largest(of_keys, FORWARD.piece),
        block_q_dkv=largest(of_queries, of_gradient.queries),
        block_kv_dkv=largest(of_keys, of_gradient.keys),
        block_kv_dkv_compute=largest(of_keys, of_gradient.piece),
        use_fused_bwd_kernel=True,
        q_layout=_TOKENS_LAST,
        k_layout=_TOKENS_LAST,
        v_layout=_TOKENS_LAST,
    )
