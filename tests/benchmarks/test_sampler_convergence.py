"""The data whose flow is known: the denoiser and the flow's end against brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import sampler_convergence
from benchmarks.sampler_convergence import DATA, SCHEDULE, Measurement, exact, mixture_x0, sampled


def test_denoiser_is_the_mean_of_the_data_that_noise_may_have_come_from():
    (centres, spread), alpha, sigma = DATA["mixture"], 0.6, 0.8
    x0 = np.linspace(-3, 3, 6001)
    density = sum(np.exp(-0.5 * ((x0 - centre) / spread) ** 2) for centre in centres)
    for x_t in (-1.0, 0.1, 0.7):
        weights = density * np.exp(-0.5 * ((x_t - alpha * x0) / sigma) ** 2)
        found = mixture_x0(jnp.array([x_t]), jnp.float32(alpha), jnp.float32(sigma), centres, spread)
        np.testing.assert_allclose(found[0], (weights * x0).sum() / weights.sum(), rtol=1e-5)


@pytest.mark.parametrize("data", DATA)
def test_flow_ends_where_many_steps_lead(data):
    with jax.enable_x64(True):
        x = np.array([-2.0, -0.5, 0.1, 1.0])
        result = sampled(jnp.asarray(x), data, "dpm_solver_pp_2m", "log_snr", 500, SCHEDULE)
        np.testing.assert_allclose(result, exact(x, data), atol=2e-4)


def test_measurements_and_their_picture(monkeypatch):
    monkeypatch.setattr(sampler_convergence, "DETERMINISTIC", ("ddim", "dpm_solver_pp_2m"))
    monkeypatch.setattr(sampler_convergence, "SPACINGS", {"uniform": "-"})
    monkeypatch.setattr(sampler_convergence, "SAMPLES", 1024)
    rows = list(sampler_convergence.measure((8, 32)))
    assert len(rows) == 2 * 2 * (2 * 2 + 2)
    errors = {(m.data, m.sampler, m.calls): m.error for m in rows if m.dtype == "float64"}
    for data in DATA:
        assert errors[data, "dpm_solver_pp_2m", 32] < errors[data, "ddim", 32] < errors[data, "ddim", 8]
    assert len(sampler_convergence.draw(rows).axes) == 4
    assert isinstance(rows[0], Measurement)
