"""A student that predicts what it is asked to does in one step exactly what its teacher does in two."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.sampler_convergence import mixture_x0
from lumiere_jax.diffusion.distillation import student_times, two_step_x0
from lumiere_jax.diffusion.loss import diffusion_loss
from lumiere_jax.diffusion.noise_schedule import CosineSchedule, DiscreteCosineSchedule
from lumiere_jax.diffusion.samplers import sample


@pytest.mark.parametrize("schedule", [CosineSchedule(), DiscreteCosineSchedule()], ids=repr)
@pytest.mark.parametrize("steps", [4, 1])
def test_half_the_steps_lead_to_the_same_place(schedule, steps):
    with jax.enable_x64(True):
        x = jnp.linspace(-2.0, 2.0, 12).reshape(2, 1, 2, 1, 3)

        def teacher(x_t, t):
            alpha, sigma = (jnp.reshape(value, (-1, 1, 1, 1, 1)) for value in schedule.alpha_sigma(t))
            return mixture_x0(x_t, alpha[..., None], sigma[..., None], (-0.6, 0.5), 0.2)

        def of_batch(denoise, x_t, t):
            return denoise(x_t, jnp.broadcast_to(t, x_t.shape[:1]))

        student = functools.partial(of_batch, two_step_x0(teacher, schedule, steps))
        run = functools.partial(sample, schedule=schedule, sampler="ddim")
        result = jax.jit(functools.partial(run, student, steps=steps))(x)
        expected = jax.jit(functools.partial(run, functools.partial(of_batch, teacher), steps=2 * steps))(x)
        np.testing.assert_allclose(result, expected, atol=1e-9)
        alone = jax.jit(functools.partial(run, functools.partial(of_batch, teacher), steps=steps))(x)
        assert np.abs(alone - expected).max() > 1e-2


def test_times_are_those_that_the_student_is_asked_about():
    times = jnp.array([1e-6, 0.125, 0.126, 0.5, 0.99, 1.0])
    np.testing.assert_allclose(student_times(times, 8), [0.125, 0.125, 0.25, 0.5, 1.0, 1.0])
    np.testing.assert_allclose(student_times(times, 1), 1.0)


@pytest.mark.parametrize("objective", ["epsilon", "x0", "v"])
def test_loss_is_against_the_teachers_clip(objective):
    """Noise and clip that a prediction is made of are the teacher's: a student that agrees with it has no loss."""
    schedule, t = CosineSchedule(), jnp.array([0.3, 0.8])
    x0, epsilon = jax.random.normal(jax.random.key(0), (2, 2, 1, 4, 4, 3))
    alpha, sigma = (value[:, None, None, None, None] for value in schedule.alpha_sigma(t))

    def teacher(x_t, t):
        return jnp.tanh(x_t)

    def student(x_t, t):
        clean = jnp.tanh(x_t)
        noise = (x_t - alpha * clean) / sigma
        return {"epsilon": noise, "x0": clean, "v": alpha * noise - sigma * clean}[objective]

    score = functools.partial(diffusion_loss, student, x0, t, epsilon, schedule=schedule, objective=objective)
    assert score(teacher=teacher)[0] < 1e-9
    assert score()[0] > 1e-2
