"""Attention: all of it at once, a frame at a time, or in a kernel that keeps the attention weights on the chip.

The weights of one layer over the 64x64 pixels of 40 frames, 10 heads, are 27 GB in float32. A frame at a time they fit,
but still go to memory and back for each step of the softmax: about a third of `if_l`'s training step on v5e. The
kernel (splash attention, which comes with JAX) works on blocks of them that never leave the chip. It is for TPUs.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
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


# Of queries and of keys that the kernel has on the chip at a time. By libtpu's schedules for v5e (docs/performance.md)
# 1024 queries would take 8 % fewer cycles, but its 16 MB of fast memory are then all but full, or more.
BLOCK_OF_QUERIES, BLOCK_OF_KEYS, _LANES = 512, 1408, 128
# In memory, as a head of 64 channels in the last place would take as much of it as 128.
_TOKENS_LAST = splash_attention_kernel.QKVLayout.SEQ_MINOR


def splash(
    query: Float[Array, "batch frames queries heads width"], *sources: Attended, interpret: bool = False
) -> Float[Array, "batch frames queries heads width"]:
    """`attention`, block after block: the weights of a block of queries and keys exist at a time.

    In a function that is traced on a mesh each device has its own queries, and all keys of its clips.

    Args:
      query, sources: as for `attention`, without biases.
      interpret: runs the kernel without a TPU, very slowly.

    Raises:
      ValueError: a source has a bias.
    """
    if any(source.bias is not None for source in sources):
        raise ValueError("remat.attention='kernel' has no bias, and so no text_mask: use 'frame_by_frame'")
    pixels = [(key, value) for key, value, _ in sources if key.shape[2] == query.shape[2]]
    text = [(key, value) for key, value, _ in sources if key.shape[2] != query.shape[2]]
    attend = functools.partial(_splash_on_device, interpret=interpret)
    return partitioning.on_rows(attend)((query, pixels), text, ())


def _splash_on_device(
    divided: tuple[Array, list[tuple[Array, Array]]],
    text: list[tuple[Array, Array]],
    _shared: tuple[()],
    *,
    interpret: bool,
) -> Array:
    query, pixels = divided
    (batch, frames, queries, heads, width), dtype = query.shape, query.dtype

    def heads_first(array: Array) -> Array:
        """`[batch * frames, heads, tokens, width]`."""
        return jnp.moveaxis(array, 3, 2).reshape(batch * frames, heads, -1, width).astype(dtype)

    def blocks(parts: list[Array], block: int) -> Array:
        """One after the other, with zeros up to whole blocks."""
        missing = -sum(part.shape[2] for part in parts) % block
        return jnp.concatenate([*parts, jnp.zeros((batch * frames, heads, missing, width), dtype)], axis=2)

    # Gathered when the heads are first already: each device then moves its own rows alone.
    sources = [[partitioning.all_rows(heads_first(array), 2) for array in pair] for pair in pixels]
    sources += [[heads_first(array) for array in pair] for pair in text]
    keys = sum(key.shape[2] for key, _ in sources)
    query_block, key_block = _block(queries, BLOCK_OF_QUERIES), _block(keys, BLOCK_OF_KEYS)
    query = blocks([heads_first(query * width**-0.5)], query_block)
    key, value = (blocks(list(parts), key_block) for parts in zip(*sources, strict=True))
    kernel = _kernel(heads, query.shape[2], key.shape[2], query_block, key_block, interpret)
    # Keys that only fill a block up are of another segment than all queries.
    segments = splash_attention_kernel.SegmentIds(
        jnp.zeros(query.shape[2], jnp.int32), (jnp.arange(key.shape[2]) >= keys).astype(jnp.int32)
    )
    out = jax.vmap(lambda *frame: kernel(*frame, segments))(query, key, value)[:, :, :queries]
    return jnp.moveaxis(out.reshape(batch, frames, heads, queries, width), 2, 3)


def _block(tokens: int, largest: int) -> int:
    """The smallest block, whole lanes, with which so many tokens are as few blocks as with the largest."""
    count = -(-tokens // largest)
    return -(-tokens // (count * _LANES)) * _LANES


def _kernel(
    heads: int, queries: int, keys: int, query_block: int, key_block: int, interpret: bool
) -> splash_attention_kernel.SplashAttentionKernel:
    everything = splash_attention_mask.FullMask((queries, keys))
    sizes = splash_attention_kernel.BlockSizes(
        block_q=query_block,
        block_kv=key_block,
        block_q_dkv=query_block,
        block_kv_dkv=key_block,
        use_fused_bwd_kernel=True,
        q_layout=_TOKENS_LAST,
        k_layout=_TOKENS_LAST,
        v_layout=_TOKENS_LAST,
    )
    return splash_attention_kernel.make_splash_mha_single_device(
        splash_attention_mask.MultiHeadMask([everything] * heads),
        block_sizes=sizes,
        residual_checkpoint_name=ATTENDED,
        interpret=interpret,
    )
