"""A config's model as shapes alone: full-size programs are traced, counted and compiled without a byte of weights."""

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx

from lumiere_jax.models.conditioning import expand_first_convolution
from lumiere_jax.models.rematerialization import Rematerialization, rematerialize
from lumiere_jax.models.stunet import inflate
from lumiere_jax.models.temporal import TemporalConfig
from lumiere_jax.models.text_to_video import TextToVideo
from lumiere_jax.models.unet2d import UNet2D
from lumiere_jax.models.unet2d_config import UNet2DConfig
from lumiere_jax.train_step import Batch


class OneKey(nnx.Rngs):
    """Draws every parameter alike: real streams count their draws, which takes nnx a minute while shapes are traced."""

    def params(self) -> jax.Array:
        return jax.random.key(0)


def abstract_unet(
    config: UNet2DConfig, temporal: TemporalConfig | None = None, *, is_conditional: bool = False
) -> UNet2D:
    """A U-Net of any size, inflated if `temporal` is given; every parameter is a float32 `jax.ShapeDtypeStruct`."""

    def build() -> UNet2D:
        unet = UNet2D(config, rngs=OneKey(0))
        unet = unet if temporal is None else inflate(unet, temporal, rngs=OneKey(0))
        return expand_first_convolution(unet, rngs=OneKey(0)) if is_conditional else unet

    return nnx.eval_shape(build)


def abstract_model(config: ml_collections.ConfigDict) -> TextToVideo:
    """The model of an inflated config, its parameters as in `abstract_unet`.

    It has no text encoder: text comes as embeddings, as it does where they were made ahead of time.

    Args:
      config: of configs/stunet.py, configs/conditional.py or configs/ssr.py, any variant.
    """
    fields, temporal = UNet2DConfig(**config.image_model.unet), TemporalConfig(**config.temporal)
    unet = abstract_unet(fields, temporal, is_conditional="conditioning" in config)
    rematerialize(unet, Rematerialization(**config.remat))
    return TextToVideo(None, unet, dtype=jnp.dtype(config.compute_dtype))


def abstract_batch(config: ml_collections.ConfigDict, batch_size: int) -> Batch:
    """A batch of `config.clip` with text embeddings as they are stored (`text/embedding_store.py`), as shapes."""
    clip, text = config.clip, (batch_size, config.text.length, config.image_model.unet.text_dim)
    video = (batch_size, clip.frames, clip.size, clip.size, 3)
    return Batch(jax.ShapeDtypeStruct(video, jnp.float32), jax.ShapeDtypeStruct(text, jnp.bfloat16))
