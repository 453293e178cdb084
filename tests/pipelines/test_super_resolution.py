"""Clips that stream through their windows are those that the whole clip gives, in the memory that is said."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_runs import random_run

from lumiere_jax.diffusion import low_resolution
from lumiere_jax.diffusion.clip_noise import clip_key, noise_of_rows
from lumiere_jax.diffusion.condition import Condition
from lumiere_jax.diffusion.samplers import advance
from lumiere_jax.pipelines import window_memory
from lumiere_jax.pipelines.generation import guided_denoiser, sampling_settings
from lumiere_jax.pipelines.super_resolution import prepare, prepare_chain, super_resolve
from lumiere_jax.pipelines.text_to_video import encode_prompts

PROMPTS = ["a red circle", "a blue star"]
VIDEOS = np.random.default_rng(0).uniform(-1, 1, (2, 6, 8, 10, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def run():
    run = random_run(super_resolution=True)
    run.config.sampling.guidance_interval = (0.6, 1.0)  # of two steps the first is guided
    return run


@functools.partial(jax.jit, static_argnames=("graphdef", "settings"))
def denoised(graphdef, parameters, x, t, low_res, tokens, level, settings):
    model = nnx.merge(graphdef, parameters)
    texts = tuple(model.embed_text(ids) for ids in tokens)
    return guided_denoiser(model.predict, settings)(x, t, low_res, texts, level)


def whole_clip(run, number, given=None, **choices):
    """A clip sampled step by step, all of it in memory; windows by an average over each pixel's predictions.

    What is given of it is put into each prediction.
    """
    settings = sampling_settings(run.config, **choices)
    frames, height, width = VIDEOS.shape[1], *(2 * size for size in VIDEOS.shape[2:4])
    key = jax.random.key(5)

    def noise(stream_key):
        return noise_of_rows(stream_key, jnp.arange(frames), jnp.arange(height), width)

    level = jnp.float32(run.config.sampling.noise_level)
    large = low_resolution.upsample(jnp.asarray(VIDEOS[number : number + 1]), height, width)
    low_res = low_resolution.augment(large, level[None], noise(clip_key(key, 0, number))[None], settings.schedule)[0]
    x, previous = np.asarray(noise(clip_key(key, 1, number))), None
    tokens = encode_prompts(run, PROMPTS[number : number + 1])
    cut, plan = settings.windows.of((frames, height, width)), settings.plan()
    for index in range(plan.calls):
        step = plan.step(index)
        weighted, total = np.zeros_like(x), np.zeros_like(x)
        for corner in cut.corners:
            box = tuple(map(slice, corner, corner + cut.shape))
            arguments = (x[box][None], step.t, low_res[box][None], tokens, level[None])
            prediction = denoised(nnx.graphdef(run.model), run.parameters(), *arguments, settings)
            weighted[box] += np.asarray(prediction)[0]
            total[box] += 1
        x0 = settings.to_x0(lambda *_, mean=weighted / total: jnp.asarray(mean))(jnp.asarray(x), step.t)
        x0 = x0 if given is None else jnp.where(given.mask > 0, given.video, x0)
        added = noise(jax.random.fold_in(clip_key(key, 2, number), index)) if step.noise is not None else None
        before = jnp.zeros_like(x0) if previous is None else previous
        x, previous = np.asarray(advance(step, jnp.asarray(x), x0, noise=added, previous=before)), x0
    return x


@pytest.mark.parametrize("choices", [{}, {"sampler": "dpm_solver_pp_2m_sde", "steps": 3, "tile": (8, 2)}])
def test_streamed_clips_are_the_whole_ones(run, choices):
    expected = np.stack([whole_clip(run, number, **choices) for number in range(2)])
    assert np.abs(expected[0] - expected[1]).max() > 0.1
    for window_batch in (1, 5):
        result = super_resolve(run, VIDEOS, PROMPTS, seed=5, window_batch=window_batch, **choices)
        np.testing.assert_allclose(result, expected, atol=2e-4)
    # Beside others or alone, with the number that it had.
    alone = super_resolve(run, VIDEOS[1:], PROMPTS[1:], seed=5, first_number=1, **choices)
    np.testing.assert_allclose(alone[0], expected[1], atol=2e-4)


@pytest.mark.parametrize("choices", [{}, {"sampler": "dpm_solver_pp_2m_sde", "steps": 3, "tile": (8, 2)}])
def test_what_is_given_of_the_large_clips_is_kept(run, choices):
    draw = np.random.default_rng(1)
    video = draw.uniform(-1, 1, (2, 6, 16, 20, 3)).astype(np.float32)
    given = Condition(video, (draw.uniform(size=(2, 6, 16, 20, 1)) < 0.3).astype(np.float32))
    expected = np.stack([whole_clip(run, n, Condition(*(part[n] for part in given)), **choices) for n in range(2)])
    for window_batch in (1, 5):
        result = super_resolve(run, VIDEOS, PROMPTS, seed=5, given=given, window_batch=window_batch, **choices)
        np.testing.assert_allclose(result, expected, atol=2e-4)
        np.testing.assert_array_equal(np.where(given.mask, result, 0), np.where(given.mask, video, 0))
    free = super_resolve(run, VIDEOS, PROMPTS, seed=5, **choices)
    assert np.abs(np.where(given.mask, 0, result - free)).max() > 1e-2  # the rest follows it
    to_all = Condition(video[0], given.mask[0])
    of_all = super_resolve(run, VIDEOS, PROMPTS, seed=5, given=to_all, **choices)
    np.testing.assert_allclose(of_all[0], expected[0], atol=2e-4)
    np.testing.assert_array_equal(np.where(to_all.mask, of_all[1], 0), np.where(to_all.mask, video[0], 0))
    with pytest.raises(ValueError, match=r"clips of \(6, 16, 10\) are given, but these become \(6, 16, 20\)"):
        super_resolve(run, VIDEOS, PROMPTS, given=Condition(*(part[..., :10, :] for part in given)), **choices)
    with pytest.raises(ValueError, match="2 clips are given, but 1 prompts"):
        super_resolve(run, VIDEOS[:1], PROMPTS[:1], given=given, **choices)


def test_frames_come_in_order_while_later_ones_are_still_noise(run):
    ready = prepare(run, VIDEOS.shape[1:4], window_batch=1)
    assert [ready.cut.starts[0], ready.cut.shape] == [(0, 2), (4, 16, 20)]
    calls = []
    program = ready.program
    ready = dataclasses.replace(ready, program=lambda *arguments: calls.append(1) or program(*arguments))
    frames, seen = ready.frames(VIDEOS, PROMPTS), []
    for clip, frame, image in frames:
        assert np.abs(image).max() <= 1
        seen.append((clip, frame, len(calls)))
    assert [place[:2] for place in seen] == [(clip, frame) for clip in range(2) for frame in range(6)]
    # Two windows a step, two steps, one clip after the other; the next window is on its way when one is fetched.
    assert [count for _, _, count in seen] == [4] * 6 + [8] * 6


def test_memory_does_not_grow_with_the_length_of_the_clip(run):
    needed = {frames: prepare(run, (frames, 8, 10), window_batch=2).needed for frames in (6, 60)}
    assert needed[60] == needed[6]


def test_parameters_are_not_counted(run):
    """They are there already, and are not free memory."""
    ready = prepare(run, (6, 8, 10), window_batch=2)
    sizes = ready.program.memory_analysis()
    parameters = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(run.parameters()))
    arguments = sizes.argument_size_in_bytes - parameters
    assert 0 < arguments < parameters
    assert ready.needed == sizes.temp_size_in_bytes + sizes.output_size_in_bytes + arguments


def test_what_fits_is_chosen(run):
    small = (6, 64, 64)
    whole = prepare(run, small, window_batch=1, memory=2**40)
    assert whole.cut.shape == (4, 128, 128)
    tiled = prepare(run, small, window_batch=1, memory=whole.needed - 1)
    assert tiled.cut.shape == (4, 68, 68)
    assert tiled.settings.windows.height == (68, 8)  # two of them
    assert tiled.needed < whole.needed / 2
    assert "6 frames of 128x128 in 8 windows of 4x68x68, 1 at once" in tiled.line()
    with pytest.raises(MemoryError, match=r"ssr:test to 128x128 .* 0.00 GiB .*: 1 windows of 4x128x128 need .*tiles"):
        prepare(run, small, window_batch=1, memory=1000)


def test_clips_that_the_host_has_no_room_for(run, monkeypatch):
    free = type("Memory", (), {"available": 2 * 6 * 16 * 16 * 3 * 4 - 1})
    monkeypatch.setattr(window_memory.psutil, "virtual_memory", lambda: free)
    prepare(run, (6, 8, 8), memory=2**40)
    with pytest.raises(MemoryError, match=r"ssr:test: 6 frames of 16x16 pixels need 0.00 GiB of the host's memory"):
        prepare(run, (6, 8, 8), memory=2**40, sampler="dpm_solver_pp_2m")


def test_as_many_windows_at_once_as_fit(run):
    four = prepare(run, (6, 8, 8), clips=2, memory=2**40)
    assert four.window_batch == 4  # two clips' two: there are no more
    assert prepare(run, (6, 8, 8), clips=2, memory=four.needed - 1).window_batch == 2


def test_a_chain_enlarges_what_it_enlarged(run):
    chain = prepare_chain([run, run], VIDEOS.shape[1:4], PROMPTS)
    assert [stage.cut.clip for stage in chain] == [(6, 16, 20), (6, 32, 40)]
    with pytest.raises(ValueError, match="the limit is 32"):
        prepare_chain([run, run], VIDEOS.shape[1:4], ["word " * 100])


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"window": (9, 2)}, "window=9 is longer than the clip, which has 6 frames"),
        ({"window": (4, 4)}, r"overlap must be in \[0, window=4\) along frames, got 4"),
        ({"tile": (9, 2)}, "tile=9 is no multiple of 2, which the network"),
        ({"tile": (8, 1)}, "tile_overlap=1 is no multiple of 2"),
        ({"tile": (8, 8)}, r"overlap must be in \[0, window=8\) along height, got 8"),
        ({"weights": "gaussian"}, "unknown weights 'gaussian'"),
        ({"guidance_interval": (0.5, 0.2)}, "guidance_interval=.* in order"),
    ],
)
def test_choices_that_cannot_be(run, choices, message):
    with pytest.raises(ValueError, match=message):
        prepare(run, VIDEOS.shape[1:4], **choices)


def test_more_that_is_wrong(run):
    base = random_run()
    with pytest.raises(ValueError, match="is no super-resolution run"):
        prepare(base, (4, 8, 8))
    config = run.config.copy_and_resolve_references()
    config.sampling.update({"threshold": "dynamic", "threshold_maximum": 1.5})
    with pytest.raises(ValueError, match="threshold='dynamic' looks at a whole clip"):
        prepare(dataclasses.replace(run, config=config), (4, 8, 8))
    with pytest.raises(ValueError, match="2 clips but 1 prompts"):
        super_resolve(run, VIDEOS, PROMPTS[:1])
    with pytest.raises(ValueError, match=r"made ready for clips of \(4, 8, 8\)"):
        prepare(run, (4, 8, 8)).frames(VIDEOS, PROMPTS)
    assert window_memory.free_memory(run.mesh) > 2**28
