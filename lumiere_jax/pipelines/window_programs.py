"""What the devices run of super-resolution: the network on windows of clips; and the frames' start and steps.

A clip's noise depends on the seed, its number, the frame and the row alone: not on the windows, nor on how many devices
share the work.
"""

import functools

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx
from jaxtyping import Array, Float, Int32, Key

from lumiere_jax.diffusion import low_resolution, samplers
from lumiere_jax.diffusion.clip_noise import clip_key, noise_of_rows
from lumiere_jax.diffusion.condition import Condition
from lumiere_jax.distributed import partitioning
from lumiere_jax.models.text_to_video import TextToVideo
from lumiere_jax.pipelines.generation import Settings, guided_denoiser, replacing

# Streams of a clip's noise. The base model's is another seed's.
_LOW_RES, _START, _STEPS = range(3)


@functools.partial(jax.jit, static_argnames="graphdef")
def embed_text(graphdef: nnx.GraphDef, parameters: dict, tokens: tuple[Array, Array]) -> tuple[Array, Array]:
    """The network's embeddings of token ids, of the prompts and of the empty prompt."""
    model: TextToVideo = nnx.merge(graphdef, parameters)
    return tuple(model.embed_text(ids) for ids in tokens)


def abstract_windows(
    config: ml_collections.ConfigDict,
    settings: Settings,
    clip: tuple[int, int, int],
    window_batch: int,
    mesh: jax.sharding.Mesh,
) -> tuple:
    """What `denoise_windows` takes of windows, as shapes on a mesh: x, small, texts, numbers, corners."""
    shape, factor = settings.windows.of(clip).shape, config.diffusion.low_res_factor
    text = (window_batch, config.text.length, config.unet.text_dim)
    small = (window_batch, shape[0], *(size // factor for size in clip[1:]), 3)
    arrays = [((window_batch, *shape, 3), jnp.float32), (small, jnp.float32)]
    arrays += [(text, config.compute_dtype)] * 2 + [((window_batch,), jnp.int32), ((window_batch, 3), jnp.int32)]
    sharding = partitioning.batch_sharding(mesh, 1)
    x, small, prompt, empty, numbers, corners = (
        jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape, dtype in arrays
    )
    return x, small, (prompt, empty), numbers, corners


@functools.partial(jax.jit, static_argnames=("graphdef", "size", "settings", "sharding"))
def denoise_windows(
    graphdef: nnx.GraphDef,
    parameters: dict,
    key: Key[Array, ""],
    t: Float[Array, ""],
    level: Float[Array, ""],
    x: Float[Array, "n frames height width 3"],
    small: Float[Array, "n frames low_height low_width 3"],
    texts: tuple[Float[Array, "n tokens text_dim"], Float[Array, "n tokens text_dim"]],
    numbers: Int32[Array, " n"],
    corners: Int32[Array, "n 3"],
    *,
    size: tuple[int, int],
    settings: Settings,
    sharding: jax.sharding.NamedSharding,
) -> Float[Array, "n frames height width out_channels"]:
    """One evaluation of the network on some windows, guided.

    Args:
      graphdef, parameters: of a `TextToVideo`.
      key: of all noise.
      t: diffusion time.
      level: of the low-resolution clip's augmentation, a diffusion time.
      x: windows of the noisy clips.
      small: the low-resolution clips, the windows' frames of it, whole.
      texts: of the windows' prompts, and of the empty prompt.
      numbers: of the windows' clips, which their noise depends on.
      corners: where in its clip a window starts: frame, row, column.
      size: (height, width) of the large clip.
      settings: from `sampling_settings`.
      sharding: of the windows.
    """
    shape = x.shape[1:4]
    schedule = settings.schedule

    def conditioning(small: Array, number: Array, corner: Array) -> Array:
        """The low-resolution clip as a window sees it, enlarged and noised."""
        first, top, left = corner
        large = low_resolution.upsample_part(small, size, (top, left), shape[1:], align_corners=settings.align_corners)
        rows = noise_of_rows(
            clip_key(key, _LOW_RES, number), first + jnp.arange(shape[0]), top + jnp.arange(shape[1]), size[1]
        )
        noise = jax.lax.dynamic_slice_in_dim(rows, left, shape[2], axis=2)
        return low_resolution.augment(large[None], level[None], noise[None], schedule)[0]

    x = jax.lax.with_sharding_constraint(x, sharding)
    low_res = jax.lax.with_sharding_constraint(jax.vmap(conditioning)(small, numbers, corners), sharding)
    model: TextToVideo = nnx.merge(graphdef, parameters)
    predict = model.predict_with_variance if settings.learns_variance else model.predict
    denoise = partitioning.on_mesh(sharding.mesh, guided_denoiser(predict, settings))
    predictions = denoise(x, t, low_res, texts, jnp.broadcast_to(level, numbers.shape))
    return jax.lax.with_sharding_constraint(predictions, sharding)


@functools.partial(jax.jit, static_argnames="size")
def start_frame(key: Array, number: Array, frame: Array, size: tuple[int, int]) -> Float[Array, "height width 3"]:
    """The noise that a frame starts from."""
    return noise_of_rows(clip_key(key, _START, number), frame[None], jnp.arange(size[0]), size[1])[0]


@functools.partial(jax.jit, static_argnames="settings")
def finish_frame(
    x: Float[Array, "height width 3"],
    prediction: Float[Array, "height width out_channels"],
    previous: Float[Array, "height width 3"] | None,
    step: samplers.Plan,
    key: Key[Array, ""],
    place: tuple[Array, Array, Array],
    given: Condition | None = None,
    *,
    settings: Settings,
) -> tuple[Float[Array, "height width 3"], Float[Array, "height width 3"]]:
    """A frame's step, from the average of its windows' predictions: its next state, and x0.

    Args:
      x: its state.
      prediction: of the network.
      previous: x0 of the step before, for samplers that need it.
      step: of the sampler's plan.
      key: of all noise.
      place: number of the clip, of the frame, and of the step.
      given: what of the frame is given: it replaces the prediction, as in `generation.replacing`.
      settings: from `sampling_settings`.
    """
    number, frame, index = place
    denoise = settings.to_x0(lambda *_: prediction)
    found = (denoise if given is None else replacing(denoise, given))(x, step.t)
    x0, fraction = found if settings.learns_variance else (found, None)
    noise = None
    if step.noise is not None:
        step_key = jax.random.fold_in(clip_key(key, _STEPS, number), index)
        noise = noise_of_rows(step_key, frame[None], jnp.arange(x.shape[0]), x.shape[1])[0]
    return samplers.advance(step, x, x0, noise=noise, fraction=fraction, previous=previous), x0
