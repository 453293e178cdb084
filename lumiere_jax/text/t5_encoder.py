"""T5 1.1's encoder (arXiv 1910.10683, 2002.05202), with the parameter names of T5X.

The path of a parameter in the NNX state, joined by "/", is its path in a T5X checkpoint, and every array has
the shape that T5X stores: `encoder/layers_0/attention/query/kernel` is `[emb, heads * head_dim]`.

    x = E[tokens]
    x = x + Attention(RMSNorm(x))            per layer
    x = x + MLP(RMSNorm(x))
    output = RMSNorm(x)

The sizes and every detail below follow T5X (`t5x/examples/t5/network.py`). Dropout is left out: the paper's text
encoder is frozen.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util
from jaxtyping import Array, Bool, DTypeLike, Float, Int

RMS_NORM_EPSILON = 1e-6
# T5X adds this to the logits of masked pairs; a row that is masked whole becomes uniform, not NaN.
MASKED_LOGIT = -1e10


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Sizes of a T5 encoder.

    Attributes:
      vocab_size: rows of the token embedding.
      emb_dim: width of the residual stream and of the output.
      num_heads: attention heads.
      num_layers: encoder layers.
      head_dim: width of one head.
      mlp_dim: hidden width of the gated MLP.
      num_buckets: relative-position buckets, half of them for each direction.
      max_distance: distance in tokens from which on all positions share a bucket.
      shared_position_bias: one position bias for all layers (T5), or one in every layer (umT5, and T5X's
        scanned layers).
    """

    vocab_size: int
    emb_dim: int
    num_heads: int
    num_layers: int
    head_dim: int
    mlp_dim: int
    num_buckets: int = 32
    max_distance: int = 128
    shared_position_bias: bool = True

    def __post_init__(self):
        sizes = {k: v for k, v in dataclasses.asdict(self).items() if k != "shared_position_bias"}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"T5Config.{name}={value} must be positive")
        if self.num_buckets % 4:
            raise ValueError(f"T5Config.num_buckets={self.num_buckets} must be a multiple of 4")
        if self.max_distance <= self.num_buckets // 4:
            raise ValueError(f"T5Config.max_distance={self.max_distance} must exceed num_buckets / 4")

    @classmethod
    def from_parameters(cls, tree: Mapping[str, Any]) -> "T5Config":
        """The config of a parameter tree (`{"token_embedder": ..., "encoder": ...}`), from its arrays' shapes.

        `max_distance` has no parameters of its own: it is taken to be 128, as in all published models.

        Raises:
          ValueError: a parameter that the sizes are read from is missing (the names are those of T5 1.1).
        """
        flat = traverse_util.flatten_dict(tree, sep="/")

        def shape(name: str) -> tuple[int, ...]:
            if name not in flat:
                raise ValueError(
                    f"the parameter tree has no {name}: it is not a T5 1.1 encoder in T5X's names. The first "
                    f"T5 (with mlp/wi in place of mlp/wi_0 and wi_1) is not supported. It has: {sorted(flat)[:8]}"
                )
            return flat[name].shape

        shared = "encoder/relpos_bias/rel_embedding" in flat
        bias = "encoder/relpos_bias/rel_embedding" if shared else "encoder/layers_0/relpos_bias/rel_embedding"
        layers = {name.split("/")[1] for name in flat if name.startswith("encoder/layers_")}
        num_heads, num_buckets = shape(bias)
        vocab_size, emb_dim = shape("token_embedder/embedding")
        return cls(
            vocab_size=vocab_size,
            emb_dim=emb_dim,
            num_heads=num_heads,
            num_layers=len(layers),
            head_dim=shape("encoder/layers_0/attention/query/kernel")[1] // num_heads,
            mlp_dim=shape("encoder/layers_0/mlp/wi_0/kernel")[1],
            num_buckets=num_buckets,
            shared_position_bias=shared,
        )


# The published T5 1.1 and flan-T5 models.
T5_SIZES: dict[str, T5Config] = {
    "small": T5Config(32128, emb_dim=512, num_heads=6, num_layers=8, head_dim=64, mlp_dim=1024),
    "base": T5Config(32128, emb_dim=768, num_heads=12, num_layers=12, head_dim=64, mlp_dim=2048),
    "large": T5Config(32128, emb_dim=1024, num_heads=16, num_layers=24, head_dim=64, mlp_dim=2816),
    "xl": T5Config(32128, emb_dim=2048, num_heads=32, num_layers=24, head_dim=64, mlp_dim=5120),
    "xxl": T5Config(32128, emb_dim=4096, num_heads=64, num_layers=24, head_dim=64, mlp_dim=10240),
}


def relative_position_buckets(
    length: int, num_buckets: int = 32, max_distance: int = 128
) -> Int[np.ndarray, "length length"]:
    """Bucket of key position k as seen from query position q, at `[q, k]` (1910.10683, section 2.1).

    Half of the buckets are for keys after the query. Within a half, the first half again has one bucket per
    distance, and the others widen logarithmically up to `max_distance`.
    """
    relative = np.arange(length)[None, :] - np.arange(length)[:, None]
    half = num_buckets // 2
    exact = half // 2
    distance = np.abs(relative)
    # As in T5X, a small number keeps the exact powers (16, 32, 64) from falling just below their bucket,
    # however this platform rounds its logarithms.
    scale = np.log(np.maximum(distance, 1) / exact + 1e-7) / np.log(max_distance / exact)
    logarithmic = np.minimum(half - 1, exact + np.floor(scale * (half - exact)).astype(np.int64))
    return np.where(relative > 0, half, 0) + np.where(distance < exact, distance, logarithmic)


def attention_mask(
    mask: Bool[Array, "batch tokens"], *, padding_sees_tokens: bool
) -> Bool[Array, "batch queries keys"]:
    """Which position sees which; `T5Encoder` says what `padding_sees_tokens` means."""
    return mask[:, None, :] & (mask[:, :, None] | padding_sees_tokens)


class Embedding(nnx.Module):
    """Token ids to vectors."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs, param_dtype: DTypeLike):
        init = nnx.initializers.normal(1.0)
        self.embedding = nnx.Param(init(rngs.params(), (config.vocab_size, config.emb_dim), param_dtype))

    def __call__(self, tokens: Int[Array, "batch tokens"]) -> Float[Array, "batch tokens emb"]:
        # An id beyond the vocabulary gives NaN: a tokenizer that does not belong to the model must not pass.
        return jnp.take(self.embedding[...], tokens, axis=0, mode="fill")


class Linear(nnx.Module):
    """`x @ kernel`, without bias."""

    def __init__(self, kernel: Float[Array, "inputs outputs"], *, dtype: DTypeLike):
        self.kernel = nnx.Param(kernel)
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        return x @ self.kernel[...].astype(self.dtype)


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation (1910.07467): the mean is not subtracted, there is no bias."""

    def __init__(self, size: int, *, dtype: DTypeLike, param_dtype: DTypeLike):
        self.scale = nnx.Param(jnp.ones((size,), param_dtype))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*batch emb"]) -> Float[Array, "*batch emb"]:
        x = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        normalised = (x * jax.lax.rsqrt(mean_square + RMS_NORM_EPSILON)).astype(self.dtype)
        return normalised * self.scale[...].astype(self.dtype)


class RelativePositionBias(nnx.Module):
    """A learned number per head and bucket of the relative position, added to the attention logits."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs, param_dtype: DTypeLike):
        init = nnx.initializers.variance_scaling(1.0, "fan_avg", "uniform")
        shape = (config.num_heads, config.num_buckets)
        self.rel_embedding = nnx.Param(init(rngs.params(), shape, param_dtype))
        self.max_distance = config.max_distance

    def __call__(self, length: int) -> Float[Array, "heads {length} {length}"]:
        embedding = self.rel_embedding[...].astype(jnp.float32)
        return embedding[:, relative_position_buckets(length, embedding.shape[1], self.max_distance)]


class Attention(nnx.Module):
    """Multi-head self-attention, without biases and without 1/sqrt(head_dim): the initialisation has it."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs, dtype: DTypeLike, param_dtype: DTypeLike):
        self.num_heads = config.num_heads
        init = nnx.initializers.variance_scaling(1.0, "fan_in", "normal")
        inner = config.num_heads * config.head_dim

        def linear(inputs: int, outputs: int, scale: float = 1.0) -> Linear:
            return Linear(init(rngs.params(), (inputs, outputs), param_dtype) * scale, dtype=dtype)

        self.query = linear(config.emb_dim, inner, scale=config.head_dim**-0.5)
        self.key = linear(config.emb_dim, inner)
        self.value = linear(config.emb_dim, inner)
        self.out = linear(inner, config.emb_dim)

    def __call__(
        self,
        x: Float[Array, "batch tokens emb"],
        bias: Float[Array, "heads tokens tokens"],
        mask: Bool[Array, "batch tokens tokens"],
    ) -> Float[Array, "batch tokens emb"]:
        query, key, value = (
            linear(x).reshape(*x.shape[:2], self.num_heads, -1) for linear in (self.query, self.key, self.value)
        )
        # In float32 also where the rest is bfloat16: unscaled logits are large.
        logits = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32) + bias
        weights = jax.nn.softmax(jnp.where(mask[:, None], logits, MASKED_LOGIT), axis=-1)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights.astype(value.dtype), value)
        return self.out(mixed.reshape(*x.shape[:2], -1))


class MLP(nnx.Module):
    """Gated GELU, tanh approximation (2002.05202): `(gelu(x wi_0) * (x wi_1)) wo`."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs, dtype: DTypeLike, param_dtype: DTypeLike):
        init = nnx.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")

        def linear(inputs: int, outputs: int) -> Linear:
            return Linear(init(rngs.params(), (inputs, outputs), param_dtype), dtype=dtype)

        self.wi_0 = linear(config.emb_dim, config.mlp_dim)
        self.wi_1 = linear(config.emb_dim, config.mlp_dim)
        self.wo = linear(config.mlp_dim, config.emb_dim)

    def __call__(self, x: Float[Array, "batch tokens emb"]) -> Float[Array, "batch tokens emb"]:
        return self.wo(jax.nn.gelu(self.wi_0(x), approximate=True) * self.wi_1(x))


class EncoderLayer(nnx.Module):
    """Attention, then MLP, each with normalised input and a residual connection."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs, dtype: DTypeLike, param_dtype: DTypeLike):
        dtypes = {"dtype": dtype, "param_dtype": param_dtype}
        self.pre_attention_layer_norm = RMSNorm(config.emb_dim, **dtypes)
        self.attention = Attention(config, rngs=rngs, **dtypes)
        self.pre_mlp_layer_norm = RMSNorm(config.emb_dim, **dtypes)
        self.mlp = MLP(config, rngs=rngs, **dtypes)
        if not config.shared_position_bias:
            self.relpos_bias = RelativePositionBias(config, rngs=rngs, param_dtype=param_dtype)

    def __call__(
        self,
        x: Float[Array, "batch tokens emb"],
        bias: Float[Array, "heads tokens tokens"] | None,
        mask: Bool[Array, "batch tokens tokens"],
    ) -> Float[Array, "batch tokens emb"]:
        if bias is None:
            bias = self.relpos_bias(x.shape[1])
        x = x + self.attention(self.pre_attention_layer_norm(x), bias, mask)
        return x + self.mlp(self.pre_mlp_layer_norm(x))


class Encoder(nnx.Module):
    """The stack of layers and the final normalisation."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs, dtype: DTypeLike, param_dtype: DTypeLike):
        dtypes = {"dtype": dtype, "param_dtype": param_dtype}
        self.config = config
        if config.shared_position_bias:
            self.relpos_bias = RelativePositionBias(config, rngs=rngs, param_dtype=param_dtype)
        for i in range(config.num_layers):
            setattr(self, f"layers_{i}", EncoderLayer(config, rngs=rngs, **dtypes))
        self.encoder_norm = RMSNorm(config.emb_dim, **dtypes)

    def __call__(
        self, x: Float[Array, "batch tokens emb"], mask: Bool[Array, "batch tokens tokens"]
    ) -> Float[Array, "batch tokens emb"]:
        bias = self.relpos_bias(x.shape[1]) if self.config.shared_position_bias else None
        for i in range(self.config.num_layers):
            x = getattr(self, f"layers_{i}")(x, bias, mask)
        return self.encoder_norm(x)


class T5Encoder(nnx.Module):
    """T5 1.1's encoder: token ids to text embeddings.

    Args:
      config: the sizes.
      rngs: draws the initial parameters (T5X's initialisation).
      dtype: of the computation and of the output; norms' statistics and attention weights stay in float32.
      param_dtype: of the parameters.
    """

    def __init__(
        self,
        config: T5Config,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
    ):
        self.config = config
        self.dtype = dtype
        self.token_embedder = Embedding(config, rngs=rngs, param_dtype=param_dtype)
        self.encoder = Encoder(config, rngs=rngs, dtype=dtype, param_dtype=param_dtype)

    def __call__(
        self,
        tokens: Int[Array | np.ndarray, "batch tokens"],
        mask: Int[Array | np.ndarray, "batch tokens"] | Bool[Array | np.ndarray, "batch tokens"] | None = None,
        *,
        padding_sees_tokens: bool = False,
    ) -> Float[Array, "batch tokens emb"]:
        """Text embeddings of token ids.

        Args:
          tokens: ids; 0 is padding. An id beyond the vocabulary gives NaN.
          mask: true (or 1) at tokens, false at padding; None takes `tokens > 0`.
          padding_sees_tokens: what the rows at padding hold, which matters to a U-Net that attends to them. Tokens
            never see padding, so their rows are the same either way. True: padding attends to the tokens, each
            position by its distances, as in Hugging Face's T5, which DeepFloyd IF was trained with. False: padding
            is masked as a query too, as in T5X; its attention is then uniform over all positions, so that all padded
            rows of a text are one and the same vector.

        Returns:
          The normalised output of the last layer.
        """
        mask = jnp.asarray(tokens > 0 if mask is None else mask, dtype=bool)
        x = self.token_embedder(jnp.asarray(tokens)).astype(self.dtype)
        return self.encoder(x, attention_mask(mask, padding_sees_tokens=padding_sees_tokens))
