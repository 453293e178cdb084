"""Text encoder and U-Net in one module: what is trained, saved and sampled, whether image model, STUNet or SSR."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from lumiere_jax.models.unet2d import UNet2D
from lumiere_jax.text.t5_encoder import T5Encoder


class TextToVideo(nnx.Module):
    """A text encoder and a (possibly inflated) U-Net that computes in `dtype`.

    Args:
      text_encoder: None where all text comes as embeddings that were made ahead of time.
      unet: the denoiser.
      dtype: of the U-Net's computation.
      padding_sees_tokens: what the embeddings hold at padding, see `T5Encoder`. True for DeepFloyd IF's U-Nets, which
        attend to it; False for those that were trained with T5X's convention.
    """

    def __init__(
        self,
        text_encoder: T5Encoder | None,
        unet: UNet2D,
        *,
        dtype: jnp.dtype = jnp.float32,
        padding_sees_tokens: bool = False,
    ):
        self.text_encoder, self.unet, self.dtype = text_encoder, unet, dtype
        self.padding_sees_tokens = padding_sees_tokens

    def embed_text(
        self, text: Int[Array, "batch tokens"] | Float[Array, "batch tokens text_dim"]
    ) -> Float[Array, "batch tokens text_dim"]:
        """Raw text embeddings of token ids; embeddings that were made ahead of time are only cast.

        Those of the empty prompt are the unconditional ones. Once per clip is enough.
        """
        if jnp.issubdtype(text.dtype, jnp.floating):
            return text.astype(self.dtype)
        return self.text_encoder(text, padding_sees_tokens=self.padding_sees_tokens).astype(self.dtype)

    def predict(
        self,
        x_t: Float[Array, "batch frames height width channels"],
        time: Float[Array, " batch"],
        text: Float[Array, "batch tokens text_dim"],
        beside: Float[Array, "batch frames height width more"] | None = None,
        noise_level: Float[Array, " batch"] | None = None,
    ) -> Float[Array, "batch frames height width channels"]:
        """The U-Net's prediction (epsilon, x0 or v: the config says which) in `x_t`'s dtype, without learned variance.

        Args:
          x_t: noisy video.
          time: the schedule's `network_time`.
          text: from `embed_text`.
          beside: what the network sees in the channels after `x_t`'s. For super-resolution: the noised low-resolution
            video at `x_t`'s size. For the conditional model: `Condition.channels`.
          noise_level: for super-resolution: the noise level of the low-resolution video, as a network time.
        """
        return self.predict_with_variance(x_t, time, text, beside, noise_level)[..., : x_t.shape[-1]]

    def predict_with_variance(
        self,
        x_t: Float[Array, "batch frames height width channels"],
        time: Float[Array, " batch"],
        text: Float[Array, "batch tokens text_dim"],
        beside: Float[Array, "batch frames height width more"] | None = None,
        noise_level: Float[Array, " batch"] | None = None,
    ) -> Float[Array, "batch frames height width out_channels"]:
        """All of the U-Net's output: of one that learns its variance (DeepFloyd IF), the prediction and then v.

        Arguments as for `predict`; the meaning of v: see `diffusion/prediction.py`.
        """
        return self.predict_with_deep_features(x_t, time, text, beside, noise_level)[0]

    def predict_with_deep_features(
        self,
        x_t: Float[Array, "batch frames height width channels"],
        time: Float[Array, " batch"],
        text: Float[Array, "batch tokens text_dim"],
        beside: Float[Array, "batch frames height width more"] | None = None,
        noise_level: Float[Array, " batch"] | None = None,
        *,
        shallow: int = 1,
        deep: Array | None = None,
    ) -> tuple[Float[Array, "batch frames height width out_channels"], Array]:
        """All of the U-Net's output, and its deep features: see `UNet2D.predict_with_deep_features`."""
        x = x_t if beside is None else jnp.concatenate([x_t, beside], axis=-1)
        x, call = x.astype(self.dtype), self.unet.predict_with_deep_features
        prediction, deep = call(x, time, text, noise_level=noise_level, shallow=shallow, deep=deep)
        return prediction.astype(x_t.dtype), deep
