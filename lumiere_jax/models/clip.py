"""CLIP (Radford et al., arXiv 2103.00020): an image and a text tower into one space, as OpenAI's ViT models.

Both towers are pre-norm transformers with the quick GELU. The image tower sees patches and one more token, whose output
is the image's; the text tower sees only what came before, and its output at the end-of-text token is the text's.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from lumiere_jax.models.attention import Attended, attention
from lumiere_jax.models.layers import LayerNorm, Linear

_PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
_PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
_LEGACY_EOS = 2


@dataclasses.dataclass(frozen=True)
class TowerConfig:
    """A transformer of CLIP. The names are those of Hugging Face's config.json."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    layer_norm_eps: float = 1e-5


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Sizes. The defaults are ViT-B/32's.

    Attributes:
      eos_token_id: where the text ends. 2 is what OpenAI's published config.json say by mistake, and means the largest
        id of each text, which the end-of-text token has in their vocabulary.
    """

    text: TowerConfig = TowerConfig(512, 2048, 12, 8)
    vision: TowerConfig = TowerConfig(768, 3072, 12, 12)
    projection_dim: int = 512
    vocab_size: int = 49408
    max_position_embeddings: int = 77
    eos_token_id: int = _LEGACY_EOS
    image_size: int = 224
    patch_size: int = 32

    @property
    def patches(self) -> int:
        """Of an image."""
        return (self.image_size // self.patch_size) ** 2


class Block(nnx.Module):
    """Self-attention, then two linear layers, each behind a normalisation and added to what it saw."""

    def __init__(self, config: TowerConfig, *, rngs: nnx.Rngs):
        width = config.hidden_size
        self.norm1 = LayerNorm(width, epsilon=config.layer_norm_eps)
        self.query, self.key, self.value, self.out = (Linear(width, width, rngs=rngs) for _ in range(4))
        self.norm2 = LayerNorm(width, epsilon=config.layer_norm_eps)
        self.fc1 = Linear(width, config.intermediate_size, rngs=rngs)
        self.fc2 = Linear(config.intermediate_size, width, rngs=rngs)
        self.heads = config.num_attention_heads

    def __call__(
        self, x: Float[Array, "batch tokens width"], bias: Float[Array, "tokens tokens"] | None
    ) -> Float[Array, "batch tokens width"]:
        y = self.norm1(x)
        query, key, value = (
            part(y).reshape(*y.shape[:2], self.heads, -1) for part in (self.query, self.key, self.value)
        )
        x = x + self.out(attention(query, Attended(key, value, bias)).reshape(x.shape))
        return x + self.fc2(_quick_gelu(self.fc1(self.norm2(x))))


def _quick_gelu(x: Array) -> Array:
    return x * jax.nn.sigmoid(1.702 * x)


class CLIP(nnx.Module):
    """Images and texts to unit vectors whose scalar product is their similarity."""

    def __init__(self, config: CLIPConfig, *, rngs: nnx.Rngs):
        self.config = config
        text, vision = config.text, config.vision
        normal = jax.nn.initializers.normal(0.02)
        self.token_embedding = nnx.Param(normal(rngs.params(), (config.vocab_size, text.hidden_size)))
        self.text_positions = nnx.Param(normal(rngs.params(), (config.max_position_embeddings, text.hidden_size)))
        self.text_blocks = nnx.List(Block(text, rngs=rngs) for _ in range(text.num_hidden_layers))
        self.text_norm = LayerNorm(text.hidden_size, epsilon=text.layer_norm_eps)
        self.text_projection = nnx.Param(normal(rngs.params(), (text.hidden_size, config.projection_dim)))
        patch = (config.patch_size, config.patch_size, 3, vision.hidden_size)
        self.patch_kernel = nnx.Param(normal(rngs.params(), patch))
        self.class_embedding = nnx.Param(normal(rngs.params(), (vision.hidden_size,)))
        self.image_positions = nnx.Param(normal(rngs.params(), (config.patches + 1, vision.hidden_size)))
        self.image_norm_before = LayerNorm(vision.hidden_size, epsilon=vision.layer_norm_eps)
        self.image_blocks = nnx.List(Block(vision, rngs=rngs) for _ in range(vision.num_hidden_layers))
        self.image_norm = LayerNorm(vision.hidden_size, epsilon=vision.layer_norm_eps)
        self.image_projection = nnx.Param(normal(rngs.params(), (vision.hidden_size, config.projection_dim)))

    def embed_texts(self, ids: Int[Array, "batch tokens"]) -> Float[Array, "batch features"]:
        """Unit vectors of texts.

        Args:
          ids: of the start, the text, its end, and anything behind that (`text/clip_tokenizer.py`).
        """
        tokens = ids.shape[1]
        x = self.token_embedding[...][ids] + self.text_positions[...][:tokens]
        before = jnp.tril(jnp.ones((tokens, tokens), bool))
        bias = jnp.where(before, 0.0, -jnp.inf)
        for block in self.text_blocks:
            x = block(x, bias)
        eos = self.config.eos_token_id
        end = jnp.argmax(ids if eos == _LEGACY_EOS else ids == eos, -1)
        at_end = jnp.take_along_axis(self.text_norm(x), end[:, None, None], 1)[:, 0]
        return _unit(at_end @ self.text_projection[...])

    def embed_images(self, images: Float[Array, "batch height width 3"]) -> Float[Array, "batch features"]:
        """Unit vectors of images.

        Args:
          images: RGB as `prepare_images` leaves them, of `image_size` pixels of a side.
        """
        step = (self.config.patch_size,) * 2
        x = jax.lax.conv_general_dilated(
            images, self.patch_kernel[...], step, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = x.reshape(len(images), -1, x.shape[-1])
        first = jnp.broadcast_to(self.class_embedding[...], (len(x), 1, x.shape[-1]))
        x = self.image_norm_before(jnp.concatenate([first, x], 1) + self.image_positions[...])
        for block in self.image_blocks:
            x = block(x, None)
        return _unit(self.image_norm(x[:, 0]) @ self.image_projection[...])


def _unit(x: Float[Array, "batch features"]) -> Float[Array, "batch features"]:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def prepare_images(images: Float[Array, "batch height width 3"], size: int = 224) -> Float[Array, "batch size size 3"]:
    """Images as the image tower wants them.

    The shorter side becomes `size` by antialiased bicubic resizing (Keys' kernel with a = -1/2, which is Pillow's), the
    middle of the longer one is kept, and pixels are normalised by CLIP's mean and standard deviation. Pillow also
    rounds to 256 levels; that is not done here.

    Args:
      images: RGB in [-1, 1].
      size: pixels of a side.
    """
    height, width = images.shape[1:3]
    short = min(height, width)
    resized = (len(images), size * height // short, size * width // short, 3)
    pixels = jnp.clip(jax.image.resize(images / 2 + 0.5, resized, "cubic", antialias=True), 0.0, 1.0)
    top, left = (resized[1] - size) // 2, (resized[2] - size) // 2
    pixels = pixels[:, top : top + size, left : left + size]
    return (pixels - jnp.array(_PIXEL_MEAN)) / jnp.array(_PIXEL_STD)
