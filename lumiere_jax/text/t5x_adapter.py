"""The encoder of an installed T5X behind the same function as ours: `(tokens[, mask]) -> embeddings`.

Nothing needs it: `t5_encoder` computes the same. It is there for those who want Google's own code to run. T5X is not on
PyPI, brings TensorFlow along, and is imported only when an adapter is made.
"""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from lumiere_jax.text.t5_encoder import T5Config, attention_mask

PIP_LINE = "pip install 'git+https://github.com/google-research/t5x'"


class T5XEncoder(nnx.Module):
    """`t5x.examples.t5.network.Transformer`'s encoder; a drop-in for `T5Encoder`.

    Args:
      parameters: `{"token_embedder": ..., "encoder": ...}`, as `read_t5x_encoder` and `read_hugging_face_t5` return it.
      dtype: of the computation and of the output.

    Raises:
      ImportError: t5x is not installed.
      ValueError: parameters that T5X's minimal T5 cannot hold: umT5's or a scanned model's.
    """

    def __init__(self, parameters: Mapping[str, Any], *, dtype: DTypeLike = jnp.float32):
        network = import_network()
        config = T5Config.from_parameters(parameters)
        if not config.shared_position_bias or config.num_buckets != 32:
            raise ValueError(
                f"t5x.examples.t5 has one position bias of 32 buckets for all layers, the parameters are of {config}: "
                "use lumiere_jax.text.t5_encoder"
            )
        self.config, self.dtype = config, dtype
        self.transformer = network.Transformer(
            network.T5Config(
                vocab_size=config.vocab_size,
                dtype=dtype,
                emb_dim=config.emb_dim,
                num_heads=config.num_heads,
                num_encoder_layers=config.num_layers,
                num_decoder_layers=0,
                head_dim=config.head_dim,
                mlp_dim=config.mlp_dim,
                mlp_activations=("gelu", "linear"),
                dropout_rate=0.0,
                float32_attention_logits=True,  # as ours
            )
        )
        self.parameters = nnx.data(jax.tree.map(nnx.Param, dict(parameters)))

    def __call__(
        self,
        tokens: Int[Array | np.ndarray, "batch tokens"],
        mask: Int[Array | np.ndarray, "batch tokens"] | Bool[Array | np.ndarray, "batch tokens"] | None = None,
        *,
        padding_sees_tokens: bool = False,
    ) -> Float[Array, "batch tokens emb"]:
        """Text embeddings of token ids; arguments and result are those of `T5Encoder`."""
        tokens = jnp.asarray(tokens)
        mask = jnp.asarray(tokens > 0 if mask is None else mask, dtype=bool)
        mask = attention_mask(mask, padding_sees_tokens=padding_sees_tokens)[:, None].astype(self.dtype)
        parameters = jax.tree.map(
            lambda leaf: leaf[...], self.parameters, is_leaf=lambda node: isinstance(node, nnx.Param)
        )
        # What `Transformer.encode` does, which has no argument for the mask.
        return self.transformer.apply(
            {"params": parameters},
            tokens,
            mask,
            method=lambda transformer, *inputs: transformer.encoder(*inputs, deterministic=True),
        )


def import_network() -> ModuleType:
    """`t5x.examples.t5.network`.

    Raises:
      ImportError: t5x is not installed.
    """
    try:
        from t5x.examples.t5 import network
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "t5x":
            raise  # t5x is there, one of its own dependencies is not
        raise ImportError(
            f"t5x is not installed (it is not on PyPI): {PIP_LINE}, or use lumiere_jax.text.t5_encoder, which needs "
            "nothing and computes the same"
        ) from error
    return network
