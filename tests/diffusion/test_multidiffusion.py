import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumiere_jax.diffusion.guidance import classifier_free_guidance
from lumiere_jax.diffusion.multidiffusion import Windows, multidiffusion, window_shares, window_starts, window_weights
from lumiere_jax.diffusion.noise_schedule import CosineSchedule
from lumiere_jax.diffusion.prediction import x0_denoiser
from lumiere_jax.diffusion.samplers import sample


def clip(frames, batch=2, channels=3, seed=0):
    shape = (batch, frames, 2, 3, channels)
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def mixing_denoiser(x, t):
    """A prediction that depends on where a frame stands in its window and on the window's other frames."""
    position = jnp.arange(x.shape[1], dtype=x.dtype).reshape(1, -1, 1, 1, 1)
    time = jnp.reshape(t, (-1, 1, 1, 1, 1))
    return 0.5 * x + 0.1 * position + time * x.mean(axis=1, keepdims=True) * (1 + position)


def least_squares(denoise_window, x, window, overlap, weights):
    """argmin_J' sum_i w ||J' - Phi(J_i)||^2 in float64, with the normal equations left to LAPACK."""
    frames = x.shape[1]
    starts = [*range(0, frames - window, window - overlap), frames - window]
    rows, values = [], []
    for start in starts:
        prediction = np.float64(denoise_window(x[:, start : start + window]))
        for position in range(window):
            root = np.sqrt(weights[position])
            rows.append(root * np.eye(frames)[start + position])
            values.append(root * prediction[:, position].reshape(-1))
    solution, _, rank, _ = np.linalg.lstsq(np.array(rows), np.array(values), rcond=None)
    assert rank == frames
    return np.moveaxis(solution.reshape(frames, x.shape[0], *x.shape[2:]), 0, 1)


@pytest.mark.parametrize(
    ("frames", "window", "overlap"), [(20, 8, 2), (11, 4, 3), (9, 4, 0), (5, 4, 1), (13, 1, 0), (8, 7, 6)]
)
@pytest.mark.parametrize("kind", ["uniform", "feathered"])
def test_solves_the_least_squares_problem(frames, window, overlap, kind):
    x, t = clip(frames), jnp.array(0.3)
    result = jax.jit(multidiffusion(mixing_denoiser, Windows((window, overlap), weights=kind)))(x, t)
    weights = window_weights(window, kind)
    expected = least_squares(lambda cut: mixing_denoiser(cut, t), x, window, overlap, weights)
    np.testing.assert_allclose(result, expected, atol=2e-6)


def test_papers_windows_tile_80_frames():
    starts = window_starts(80, 8, 2)
    assert len(starts) == 13
    assert starts == tuple(range(0, 73, 6))


@pytest.mark.parametrize("window", [1, 2, 5, 8])
def test_windows_cover_every_frame_and_the_last_is_clamped(window):
    for frames in range(window, 30):
        for overlap in range(window):
            starts = window_starts(frames, window, overlap)
            covered = {start + k for start in starts for k in range(window)}
            assert covered == set(range(frames))
            assert starts[-1] == frames - window
            assert len(set(starts)) == len(starts)
            gaps = np.diff(starts)
            assert np.all(gaps[:-1] == window - overlap)
            assert np.all(gaps <= window - overlap)


@pytest.mark.parametrize("kind", ["uniform", "feathered"])
def test_partition_of_unity(kind):
    """A denoiser that treats frames alone is left as it is, however the windows lie."""
    for frames, window, overlap in [(20, 8, 2), (19, 8, 7), (9, 4, 0)]:
        x = clip(frames)
        denoise = multidiffusion(lambda x, t: 2 * x, Windows((window, overlap), weights=kind))
        result = jax.jit(denoise)(x, jnp.array(0.5))
        np.testing.assert_allclose(result, 2 * np.asarray(x), rtol=1e-6)


def test_frames_of_one_window_are_its_prediction():
    x, t = clip(14), jnp.array(0.5)
    result = jax.jit(multidiffusion(mixing_denoiser, Windows((8, 2), weights="feathered")))(x, t)
    first = jax.jit(mixing_denoiser)(x[:, :8], t)
    # to the last bit but for the order in which the compiler sums the window's mean
    np.testing.assert_allclose(result[:, :6], first[:, :6], rtol=3e-7, atol=3e-7)


def test_feathered_weights():
    np.testing.assert_allclose(window_weights(5, "feathered"), [1 / 3, 2 / 3, 1, 2 / 3, 1 / 3])
    np.testing.assert_allclose(window_weights(4, "feathered"), [0.5, 1, 1, 0.5])
    np.testing.assert_array_equal(window_weights(3), 1)


@pytest.mark.parametrize("frames", [3, 8])
def test_at_most_one_window_is_one_plain_call(frames):
    shapes = []

    def recording(x, t, mask):
        shapes.append((x.shape, t.shape, mask.shape))
        return mixing_denoiser(x, t) + mask

    x, t, mask = clip(frames), jnp.array([0.2, 0.7]), clip(frames, channels=1, seed=1)
    result = multidiffusion(recording, Windows((8, 2)))(x, t, mask)
    np.testing.assert_array_equal(result, mixing_denoiser(x, t) + mask)
    assert shapes == [(x.shape, (2,), mask.shape)]


def test_order_of_the_windows_does_not_matter():
    """A clip played backwards has the same windows in the opposite order."""
    x, t = clip(20), jnp.array(0.4)
    denoise = jax.jit(
        multidiffusion(lambda x, t: x * x.mean(axis=1, keepdims=True), Windows((8, 2), weights="feathered"))
    )
    np.testing.assert_allclose(denoise(x[:, ::-1], t)[:, ::-1], denoise(x, t), atol=1e-6)


def tile_denoiser(x, t):
    """A prediction that depends on where a pixel stands in its window, along each axis."""
    _, frames, height, width, _ = x.shape
    f, h, w = jnp.meshgrid(*(jnp.arange(n, dtype=x.dtype) for n in (frames, height, width)), indexing="ij")
    return x * (1 + t) + (0.1 * f + 0.3 * h * h - 0.2 * w)[None, ..., None] + x.mean((1, 2, 3), keepdims=True)


@pytest.mark.parametrize("kind", ["uniform", "feathered"])
@pytest.mark.parametrize("window_batch", [None, 5])
def test_tiles_solve_the_least_squares_problem(kind, window_batch):
    """Windows along all three axes, each pixel's normal equation by itself, in float64."""
    generator = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, t = generator.normal(size=(2, 7, 9, 10, 3)), 0.5
        windows = Windows((3, 1), (5, 2), (4, 2), kind)
        result = np.asarray(jax.jit(multidiffusion(tile_denoiser, windows, window_batch=window_batch))(x, t))
        assert result.dtype == np.float64
        weights = np.einsum("f,h,w->fhw", *(window_weights(n, kind) for n in (3, 5, 4)))[None, ..., None]
        weighted, total = np.zeros_like(x), np.zeros_like(x)
        for f in (0, 2, 4):
            for h in (0, 3, 4):
                for w in (0, 2, 4, 6):
                    box = np.s_[:, f : f + 3, h : h + 5, w : w + 4]
                    weighted[box] += weights * np.asarray(tile_denoiser(x[box], t))
                    total[box] += weights
        assert total.min() > 0
        np.testing.assert_allclose(result, weighted / total, atol=1e-12)


def test_masks_are_cut_into_tiles_with_the_clip():
    x = clip(6)[:, :, :, :2]
    mask = jnp.cumsum(jnp.ones_like(x[..., :1]), axis=3)
    denoise = multidiffusion(lambda x, t, mask: x + mask, Windows((4, 2), width=(1, 0)))
    np.testing.assert_allclose(denoise(x, jnp.array(0.1), mask), x + mask, rtol=1e-6)
    with pytest.raises(ValueError, match=r"per_frame array 0 has shape \(2, 6, 1\).*\(batch, frames, height, width\)"):
        denoise(x, jnp.array(0.1), mask[:, :, 0, 0])


def test_windows_that_overwrite():
    """Show-1's way: a frame is the later window's."""
    shares = window_shares(11, 4, 2, "latest")
    np.testing.assert_array_equal(shares, [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
    x, t = clip(11), jnp.array(0.3)
    result = multidiffusion(mixing_denoiser, Windows((4, 2), weights="latest"))(x, t)
    expected = np.zeros_like(x)
    for start in (0, 2, 4, 6, 7):
        expected[:, start : start + 4] = mixing_denoiser(x[:, start : start + 4], t)
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_overhead_of_the_papers_windows():
    assert Windows((8, 2)).of((80, 1024, 1024)).overhead == pytest.approx(1.3)
    assert Windows((8, 0), (512, 0), (512, 0)).of((80, 1024, 1024)).overhead == 1.0
    assert Windows(height=(512, 0)).of((80, 1024, 1024)).shape == (80, 512, 1024)


@pytest.mark.parametrize("window_batch", [None, 1, 2, 3, 5, 99])
def test_conditioning_follows_its_window_and_its_clip(window_batch):
    """Frames, masks, text and time all carry their clip's number and their frame's: they must meet again."""
    batch, frames = 3, 17
    number = jnp.arange(batch, dtype=jnp.float32)
    stamp = 100 * number[:, None] + jnp.arange(frames)
    x = jnp.broadcast_to(stamp[..., None, None, None], (batch, frames, 2, 2, 3))
    per_frame = stamp[..., None]
    per_clip = {"text": number[:, None, None] * jnp.ones((1, 4, 5)), "level": number}
    t = number / 10

    def checking(x, t, per_frame, conditioning):
        wrong = jnp.abs(x - per_frame[..., None, None])
        clip_number = jnp.floor(x / 100)
        wrong += jnp.abs(clip_number - conditioning["text"][:, None, None, :1, :1])
        wrong += jnp.abs(clip_number - jnp.reshape(conditioning["level"], (-1, 1, 1, 1, 1)))
        wrong += jnp.abs(clip_number - 10 * jnp.reshape(t, (-1, 1, 1, 1, 1)))
        assert x.shape[0] in (batch * n for n in (1, 2, 3, 5, 6, 99))
        return jnp.concatenate([x, wrong], axis=-1)

    denoise = jax.jit(multidiffusion(checking, Windows((5, 2)), window_batch=window_batch))
    result = denoise(x, t, per_frame, per_clip=(per_clip,))
    assert result.shape == (batch, frames, 2, 2, 6)
    np.testing.assert_allclose(result[..., :3], x, rtol=1e-6)
    np.testing.assert_allclose(result[..., 3:], 0, atol=1e-4)


def test_window_batch_changes_nothing_but_the_batch():
    x, sizes = clip(20), []

    def recording(x, t):
        sizes.append(x.shape[0])
        return mixing_denoiser(x, t)

    whole = jax.jit(multidiffusion(recording, Windows((5, 1))))(x, jnp.array(0.5))
    assert sizes == [5 * 2]
    sizes.clear()
    chunked = jax.jit(multidiffusion(recording, Windows((5, 1)), window_batch=2))(x, jnp.array(0.5))
    assert set(sizes) == {2 * 2}
    np.testing.assert_allclose(chunked, whole, atol=1e-6)


def test_samplers_and_guidance_are_unaware_of_it():
    """A frame-wise network sampled in windows gives the very clip that it gives in one piece."""
    schedule = CosineSchedule()

    def pair(x, t):
        return 0.9 * x, 0.8 * x

    def generate(denoiser):
        denoise_x0 = x0_denoiser(denoiser, schedule, "v", lambda x0: jnp.clip(x0, -1, 1))
        run = jax.jit(lambda x: sample(denoise_x0, x, schedule=schedule, steps=5, sampler="dpm_solver_pp_2m"))
        return run(clip(10))

    guided = classifier_free_guidance(pair, 3.0)
    np.testing.assert_allclose(
        generate(multidiffusion(guided, Windows((4, 2)), window_batch=2)), generate(guided), atol=1e-5
    )


def test_errors():
    for arguments, message in [
        ((8, 9, 2), "a window of frames=9 is longer than the clip's frames=8"),
        ((8, 0, 0), "window must be at least 1 along frames, got 0"),
        ((8, 4, 4), r"overlap must be in \[0, window=4\) along frames, got 4"),
        ((8, 4, -1), r"overlap must be in \[0, window=4\) along frames, got -1"),
    ]:
        with pytest.raises(ValueError, match=message):
            window_starts(*arguments)
    with pytest.raises(ValueError, match=r"overlap must be in \[0, window=8\) along width, got 8"):
        Windows((4, 1), width=(8, 8))
    with pytest.raises(ValueError, match="overlap must be in"):
        multidiffusion(mixing_denoiser, Windows((4, 5)))
    with pytest.raises(ValueError, match="unknown weights 'gaussian'"):
        multidiffusion(mixing_denoiser, Windows((4, 1), weights="gaussian"))
    with pytest.raises(ValueError, match="window_batch must be at least 1"):
        multidiffusion(mixing_denoiser, Windows((4, 1)), window_batch=0)
    with pytest.raises(ValueError, match=r"per_frame array 0 has shape \(2, 77, 8\).*per_clip"):
        multidiffusion(mixing_denoiser, Windows((4, 1)))(clip(9), jnp.array(0.5), jnp.zeros((2, 77, 8)))
