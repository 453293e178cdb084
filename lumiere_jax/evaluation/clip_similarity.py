"""CLIP similarity (CLIP-SIM; Wu et al., GODIVA, arXiv 2104.14806): how well the frames of a clip fit its prompt.

The cosine between the prompt's vector and each frame's, averaged over the frames. It is a cosine, in [-1, 1]; some
papers report 100 times as much. The reported score of a set of clips is the mean over them.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from lumiere_jax.models.clip import CLIP, prepare_images
from lumiere_jax.text.clip_tokenizer import CLIPTokenizer


class CLIPFeatures(NamedTuple):
    """Both ways into CLIP's space.

    Attributes:
      frames: videos `[clips, frames, height, width, 3]`, RGB in [-1, 1], to unit vectors `[clips, frames, features]`.
      prompts: to unit vectors `[prompts, features]`.
    """

    frames: Callable[[Float[np.ndarray | Array, "clips frames height width 3"]], Float[np.ndarray, "clips frames f"]]
    prompts: Callable[[Sequence[str]], Float[np.ndarray, "prompts f"]]


def clip_features(clip: CLIP, tokenizer: CLIPTokenizer) -> CLIPFeatures:
    """The vectors of frames and prompts.

    Args:
      clip: with published weights (`checkpoints/evaluation_networks.py`).
      tokenizer: of the same directory.
    """

    @nnx.jit
    def embed_frames(network: CLIP, videos: Array) -> Array:
        with jax.default_matmul_precision("highest"):  # TPUs would round what they multiply to bfloat16
            images = prepare_images(videos.reshape(-1, *videos.shape[2:]), network.config.image_size)
            return network.embed_images(images).reshape(*videos.shape[:2], -1)

    @nnx.jit
    def embed_texts(network: CLIP, ids: Array) -> Array:
        with jax.default_matmul_precision("highest"):
            return network.embed_texts(ids)

    length = clip.config.max_position_embeddings
    return CLIPFeatures(
        lambda videos: np.asarray(embed_frames(clip, jnp.asarray(videos, jnp.float32))),
        lambda prompts: np.asarray(embed_texts(clip, jnp.asarray(tokenizer.encode(prompts, length)))),
    )


def clip_similarity(
    frames: Float[np.ndarray, "clips frames features"], prompts: Float[np.ndarray, "clips features"]
) -> Float[np.ndarray, " clips"]:
    """The mean cosine of each clip's frames and its prompt, in float64.

    Args:
      frames: vectors of the frames of each clip.
      prompts: the vector of each clip's prompt.
    """
    image, text = (
        vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
        for vectors in (np.asarray(frames, np.float64), np.asarray(prompts, np.float64))
    )
    return np.einsum("ctf,cf->ct", image, text).mean(1)
