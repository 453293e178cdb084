"""DeepFloyd IF's sampling against its published formulae, restated in NumPy, and against diffusers where it is at hand.

The restatement works on one noise level at a time with alpha-bar and beta, as the papers write it; ours works with
ratios of sigma and log-SNR. In float32 the restatement gives diffusers' own numbers to the last digit or two.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumiere_jax.diffusion.guidance import dynamic_threshold
from lumiere_jax.diffusion.multidiffusion import Windows
from lumiere_jax.diffusion.noise_schedule import CosineSchedule, DiscreteCosineSchedule
from lumiere_jax.diffusion.prediction import x0_and_variance_denoiser, x0_denoiser
from lumiere_jax.diffusion.samplers import advance, follow, plan, sample, time_grid
from lumiere_jax.pipelines.generation import Settings, generate

SCHEDULE = DiscreteCosineSchedule()


def if_alphas_cumprod():
    """squaredcos_cap_v2 (Nichol & Dhariwal 2021, eq. 17), one level at a time."""
    products, product = [], 1.0
    for i in range(1000):
        now, later = (np.cos((u / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2 for u in (i, i + 1))
        product *= 1 - min(1 - later / now, 0.999)
        products.append(product)
    return np.array(products)


ALPHAS_CUMPROD = if_alphas_cumprod()


def restated_x0(x, epsilon, level, alphas_cumprod, maximum, percentile=0.95):
    """Ho et al. 2020, eq. 15, then dynamic thresholding (Saharia et al. 2022, section 2.3); x: [batch, ...]."""
    alpha_bar = alphas_cumprod[level]
    x0 = (x - np.sqrt(1 - alpha_bar) * epsilon) / np.sqrt(alpha_bar)
    thresholded = []
    for clip in x0:
        s = min(max(np.quantile(np.abs(clip), percentile).astype(x.dtype), 1), maximum)
        thresholded.append(np.clip(clip, -s, s) / s)
    return np.array(thresholded)


def restated_step(x, x0, v, noise, level, next_level, alphas_cumprod):
    """Ho et al. 2020, eq. 7, with the log-variance of Nichol & Dhariwal 2021, eq. 15; next_level -1: the last step."""
    alpha_bar = alphas_cumprod[level]
    next_alpha_bar = alphas_cumprod[next_level] if next_level >= 0 else x.dtype.type(1)
    alpha = alpha_bar / next_alpha_bar
    beta = 1 - alpha
    mean = np.sqrt(next_alpha_bar) * beta / (1 - alpha_bar) * x0
    mean = mean + np.sqrt(alpha) * (1 - next_alpha_bar) / (1 - alpha_bar) * x
    if next_level < 0:
        return mean
    fraction = (v + 1) / 2
    posterior_variance = (1 - next_alpha_bar) / (1 - alpha_bar) * beta
    return mean + np.exp((fraction * np.log(beta) + (1 - fraction) * np.log(posterior_variance)) / 2) * noise


def our_step(x, x0, v, noise, level, next_level):
    """A step of DDPM with learned variance between two levels; everything [batch, ..., channels]."""
    times = np.array([level + 1, next_level + 1, 0][: 3 if next_level >= 0 else 2]) / 1000

    @jax.jit
    def step(x, x0, fraction, noise):
        steps = plan("ddpm", SCHEDULE, times, variance="learned_range")
        return advance(steps.step(0), x, x0, noise=noise, fraction=fraction)

    return step(x, x0, 0.5 * (v + 1), noise)


LEVELS = [(990, 980), (500, 490), (10, 0), (0, -1), (962, 925), (37, 36)]


@pytest.mark.parametrize(("level", "next_level"), LEVELS)
def test_step_is_the_published_one(level, next_level):
    """v leaves [-1, 1] here, as a network's may: nothing clips it."""
    x, x0, v, noise = np.random.default_rng(level).normal(size=(4, 2, 1, 5, 7, 3))
    expected = restated_step(x, x0, v, noise, level, next_level, ALPHAS_CUMPROD)
    with jax.enable_x64(True):
        np.testing.assert_allclose(our_step(x, x0, v, noise, level, next_level), expected, atol=1e-10)
    float32 = our_step(*np.float32([x, x0, v, noise]), level, next_level)
    np.testing.assert_allclose(float32, expected, atol=3e-6)


def test_last_step_is_x0_whatever_the_noise():
    x, x0, v, noise = np.random.default_rng(0).normal(size=(4, 1, 2, 3)).astype(np.float32)
    np.testing.assert_array_equal(our_step(x, x0, v, 1e3 * noise, 0, -1), x0)


# ------------------------------------------------------------------------------------ diffusers' own numbers


@pytest.fixture(scope="module")
def reference(fixtures):
    """diffusers' DDPMScheduler with DeepFloyd IF's settings; images are [batch, channels, height, width]."""
    with np.load(fixtures / "if_sampling" / "sampling.npz") as arrays:
        return dict(arrays)


def channels_last(images):
    return np.moveaxis(images, 1, -1)


@pytest.mark.parametrize(("level", "next_level"), LEVELS[:4])
def test_step_against_diffusers(reference, level, next_level):
    x, output = reference["step_sample"], reference["step_model_output"]
    epsilon, v, noise = output[:, :3], output[:, 3:], reference[f"step{level}_noise"]
    x0, prev = reference[f"step{level}_x0"], reference[f"step{level}_prev"]
    # The restatement, in float32 and with diffusers' table, is what diffusers computes ...
    table = reference["alphas_cumprod"]
    np.testing.assert_allclose(restated_x0(x, epsilon, level, table, 1.5), x0, atol=5e-7)
    np.testing.assert_allclose(restated_step(x, x0, v, noise, level, next_level, table), prev, atol=5e-7)
    # ... and so is ours, from epsilon on.
    output = channels_last(output)
    denoise = x0_and_variance_denoiser(lambda x, t: output, SCHEDULE, "epsilon", dynamic_threshold)
    our_x0, fraction = jax.jit(denoise)(channels_last(x), jnp.float32((level + 1) / 1000))
    np.testing.assert_allclose(our_x0, channels_last(x0), atol=1e-5)
    np.testing.assert_allclose(fraction, channels_last((v + 1) / 2), rtol=1e-6)
    ours = our_step(*map(channels_last, (x, np.float32(x0), v, noise)), level, next_level)
    # diffusers takes 1 - alpha-bar in float32. At level 10, where that is 1e-3, its own rounding is 4e-5.
    np.testing.assert_allclose(ours, channels_last(prev), atol=5e-5 if level == 10 else 1e-5)


def test_timesteps_against_diffusers(reference):
    times = jnp.asarray(time_grid(100, SCHEDULE, "leading"))
    levels = jax.jit(SCHEDULE.network_time)(times)
    np.testing.assert_array_equal(levels[:-1], reference["timesteps_100"])
    alpha, _ = jax.jit(SCHEDULE.alpha_sigma)(times[:-1])
    np.testing.assert_allclose(alpha**2, reference["alphas_cumprod"][reference["timesteps_100"]], rtol=3e-5)


@pytest.mark.parametrize(("steps", "first", "stride"), [(100, 990, 10), (50, 980, 20), (27, 962, 37), (1000, 999, 1)])
def test_leading_levels(steps, first, stride):
    times = time_grid(steps, SCHEDULE, "leading")
    levels = jax.jit(SCHEDULE.network_time)(jnp.asarray(times))
    np.testing.assert_array_equal(levels, [*range(first, -1, -stride), -1])
    assert times[-1] == 0


# ------------------------------------------------------------------------------------ the whole loop


def network(x, level, text, low_res=None, noise_level=None, *, library):
    """Some function of everything, [batch, frames, height, width, 6] as DeepFloyd IF's: epsilon, then v.

    v leaves [-1, 1], as a network's may: nothing clips it.
    """
    level, prompt = level.reshape(-1, 1, 1, 1, 1), text.mean((1, 2)).reshape(-1, 1, 1, 1, 1)
    position = library.arange(x.shape[1]).reshape(1, -1, 1, 1, 1)
    seen = x + 0.1 * position
    if low_res is not None:
        seen = seen + 0.5 * low_res + noise_level.reshape(-1, 1, 1, 1, 1) / 500
    epsilon = library.tanh((0.4 + level / 1000) * seen + 0.1 * prompt) + 0.1 * x[:, :, ::-1]
    v = 1.5 * library.sin(2 * seen + level / 300 + prompt)
    return library.concatenate([epsilon, v], axis=-1)


def restated_loop(x, noises, levels, weight, maximum, prompt, empty, condition=(), windows=None):
    """Guided ancestral sampling by the formulae, in float64; `condition` is low-resolution clips and integer levels."""
    for k, (level, next_level) in enumerate(zip(levels, [*levels[1:], -1], strict=True)):
        epsilon, v, covered = np.zeros(x.shape), np.zeros(x.shape), np.zeros(x.shape[1])
        for window in windows or [slice(0, x.shape[1])]:
            low = (condition[0][:, window], condition[1]) if condition else ()
            time = np.full(len(x), float(level))
            conditional, unconditional = (
                network(x[:, window], time, text, *low, library=np) for text in (prompt, empty)
            )
            guided = unconditional[..., :3] + weight * (conditional[..., :3] - unconditional[..., :3])
            epsilon[:, window] += guided
            v[:, window] += conditional[..., 3:]
            covered[window] += 1
        epsilon, v = (a / covered.reshape(1, -1, 1, 1, 1) for a in (epsilon, v))
        x0 = restated_x0(x, epsilon, level, ALPHAS_CUMPROD, maximum)
        x = restated_step(x, x0, v, noises[k], level, next_level, ALPHAS_CUMPROD)
    return x


STAGE_1 = Settings(
    schedule=SCHEDULE,
    prediction="epsilon",
    sampler="ddpm",
    steps=5,
    spacing="leading",
    variance="learned_range",
    guidance_weight=7.0,
    threshold="dynamic",
    threshold_maximum=1.5,
)


def run_both(settings, x, texts, dtype, low_res=None, level=None, **restated):
    """Our loop, compiled, and the restated one, on the same noises."""
    key = jax.random.key(3)
    noises = [np.float64(jax.random.normal(jax.random.fold_in(key, k), x.shape, dtype)) for k in range(settings.steps)]
    predict = functools.partial(network, library=jnp)
    cast = [None if a is None else jnp.asarray(a, dtype) for a in (x, *texts, low_res, level)]
    ours, _ = jax.jit(
        lambda x, prompt, empty, low_res, level: generate(predict, x, (prompt, empty), low_res, level, key, settings)
    )(*cast)
    assert ours.dtype == dtype
    condition = () if low_res is None else (low_res, 1000 * level - 1)
    return ours, restated_loop(
        x,
        noises,
        [800, 600, 400, 200, 0],
        settings.guidance_weight,
        settings.threshold_maximum,
        *texts,
        condition,
        **restated,
    )


@pytest.fixture
def inputs():
    generator = np.random.default_rng(7)
    x, low_res = generator.normal(size=(2, 2, 6, 3, 4, 3))
    texts = generator.normal(size=(2, 2, 5, 8))
    return x, low_res, texts


def test_stage_1_loop_is_the_published_one(inputs):
    x, _, texts = inputs
    with jax.enable_x64(True):
        ours, expected = run_both(STAGE_1, x, texts, jnp.float64)
        np.testing.assert_allclose(ours, expected, atol=1e-9)
    ours, expected = run_both(STAGE_1, np.float64(np.float32(x)), texts, jnp.float32)
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert np.abs(expected).max() > 0.9


def test_stage_2_loop_in_windows_is_the_published_one(inputs):
    """Guidance 4, threshold 1; one clip's low-resolution video at level 250, the other's at level 0.

    MultiDiffusion averages v as it averages epsilon.
    """
    x, low_res, texts = inputs
    settings = dataclasses.replace(STAGE_1, guidance_weight=4.0, threshold_maximum=1.0, windows=Windows((4, 1)))
    windows = [slice(0, 4), slice(2, 6)]  # the second one moved back to end with the clip
    with jax.enable_x64(True):
        ours, expected = run_both(settings, x, texts, jnp.float64, low_res, np.array([0.251, 0.001]), windows=windows)
        np.testing.assert_allclose(ours, expected, atol=1e-9)


def test_other_samplers_have_no_use_for_the_variance(inputs):
    """A config with learned variance, sampled otherwise: the network is asked for its prediction alone."""
    x, _, texts = (jnp.asarray(a, jnp.float32) for a in inputs)
    fields = {"schedule": SCHEDULE, "prediction": "epsilon", "sampler": "ddim", "steps": 2, "threshold": "static"}

    @functools.partial(jax.jit, static_argnums=1)
    def run(x, settings):
        def predict(*arguments, **named):
            return network(*arguments, **named, library=jnp)[..., :3]

        return generate(predict, x, tuple(texts), None, None, jax.random.key(0), settings)[0]

    learned, fixed = (
        run(x, Settings(**fields, guidance_weight=7.0, variance=variance))
        for variance in ("learned_range", "posterior")
    )
    np.testing.assert_array_equal(learned, fixed)


def test_fraction_0_is_ddpm_with_the_posteriors_variance():
    x, key = jnp.asarray(np.random.default_rng(2).normal(size=(1, 2, 3, 4, 3)), jnp.float32), jax.random.key(1)
    for schedule in (SCHEDULE, CosineSchedule()):
        run = functools.partial(sample, schedule=schedule, steps=4, sampler="ddpm", key=key)
        learned = jax.jit(
            lambda x, run=run: run(lambda x, t: (0.5 * x, jnp.zeros_like(x)), x, variance="learned_range")
        )(x)
        fixed = jax.jit(lambda x, run=run: run(lambda x, t: 0.5 * x, x))(x)
        np.testing.assert_allclose(learned, fixed, rtol=1e-6)


def test_errors():
    x, key = jnp.zeros((1, 1, 2, 2, 3)), jax.random.key(0)
    with pytest.raises(ValueError, match=r"shape \(1, 1, 2, 2, 3\) for x_t .* twice the channels"):
        x0_and_variance_denoiser(lambda x, t: x, SCHEDULE, "epsilon")(x, jnp.array(0.5))
    with pytest.raises(ValueError, match="first half of the channels"):
        x0_denoiser(lambda x, t: jnp.tile(x, 2), SCHEDULE, "epsilon")(x, jnp.array(0.5))
    with pytest.raises(ValueError, match="unknown objective 'noise'"):
        x0_and_variance_denoiser(lambda x, t: x, SCHEDULE, "noise")
    with pytest.raises(ValueError, match="needs a random key"):
        follow(plan("ddpm", SCHEDULE, time_grid(2, SCHEDULE), variance="learned_range"), lambda x, t: (x, x), x)
    with pytest.raises(ValueError, match="times must fall strictly"):
        plan("ddpm", SCHEDULE, np.array([0.5, 0.7, 0.0]), variance="learned_range")
    with pytest.raises(ValueError, match="this one is continuous"):
        time_grid(10, CosineSchedule(), "leading")
    run = functools.partial(sample, lambda x, t: x, x, schedule=SCHEDULE, steps=2, key=key)
    with pytest.raises(ValueError, match="unknown variance 'learned'"):
        run(sampler="ddpm", variance="learned")
    with pytest.raises(ValueError, match="variance='learned_range' has a meaning only for sampler=\"ddpm\""):
        run(sampler="ddim", variance="learned_range")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("threshold", "clip", "threshold='clip': use one of dynamic, static, none"),
        ("sampler", "euler", "sampler='euler': use one of ddim, ddpm"),
        ("variance", "learned", "variance='learned': use one of posterior, learned_range"),
        ("spacing", "trailing", "unknown spacing 'trailing'"),
        ("steps", 2000, "steps=2000 exceeds"),
        ("threshold_percentile", 95.0, "threshold_percentile=95.0: give a share"),
        ("threshold_maximum", 0.5, "threshold_maximum=0.5: give a number from 1"),
    ],
)
def test_settings_out_of_range(field, value, message):
    fields = {"schedule": SCHEDULE, "prediction": "epsilon", "sampler": "ddpm", "steps": 5, "guidance_weight": 7.0}
    with pytest.raises(ValueError, match=message):
        Settings(**fields | {"threshold": "dynamic", field: value})
