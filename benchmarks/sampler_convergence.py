"""How many calls of the network do samplers need? On data whose best denoiser and whose flow are known.

    python -m benchmarks.sampler_convergence [--output=DIR]

The data are numbers: a Gaussian, whose flow from noise to data is known in closed form, and a mixture of two, whose
flow keeps the order of numbers. Every sampler starts from the same noise and may call the denoiser up to 128 times, on
three grids of times. Deterministic samplers are compared number by number, in float64 and in float32; those that add
noise by the spread of what they make, which so many samples tell to 0.3 %. Takes three minutes on a CPU. Writes

    sampler_convergence.png     error against calls
    sampler_convergence.csv     the same as a table
"""

import csv
import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tqdm
from absl import app, flags
from absl.flags import FLAGS
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from lumiere_jax.diffusion.noise_schedule import CosineSchedule, NoiseSchedule
from lumiere_jax.diffusion.samplers import follow, plan, time_grid
from lumiere_jax.distributed import platform

SCHEDULE = CosineSchedule()
DETERMINISTIC, STOCHASTIC = ("ddim", "dpm_solver_pp_2m", "heun"), ("ddpm", "dpm_solver_pp_2m_sde")
SPACINGS = {"uniform": "-", "log_snr": "--", "karras": ":"}  # and the lines that they are drawn as
CALLS = (4, 8, 16, 32, 64, 128)
DATA = {"Gaussian": ((0.4,), 0.3), "mixture": ((-0.6, 0.5), 0.2)}  # centres, and the spread around each
SAMPLES = 2**16


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Error of a sampler's result: root mean square of it, or with noise relative error of the standard deviation."""

    data: str
    sampler: str
    spacing: str
    calls: int
    dtype: str
    error: float


def mixture_x0(
    x_t: Float[Array, "*shape"], alpha: Array, sigma: Array, centres: Sequence[float], spread: float
) -> Float[Array, "*shape"]:
    """E[x0 | x_t] for data around `centres`, each as likely, Gaussian with a standard deviation of `spread`."""
    centre = jnp.asarray(centres, x_t.dtype)
    variance = (alpha * spread) ** 2 + sigma**2
    distance = x_t[..., None] - alpha * centre
    weights = jax.nn.softmax(-0.5 * distance**2 / variance)
    return (weights * (centre + alpha * spread**2 / variance * distance)).sum(-1)


def noise() -> Float[np.ndarray, " samples"]:
    """What all samplers start from: the quantiles of the normal distribution, so that means over it are exact."""
    return np.asarray(jax.scipy.stats.norm.ppf((np.arange(SAMPLES) + 0.5) / SAMPLES), np.float64)


@functools.partial(jax.jit, static_argnames=("data", "sampler", "spacing", "steps", "schedule"))
def sampled(x: Array, data: str, sampler: str, spacing: str, steps: int, schedule: NoiseSchedule = SCHEDULE) -> Array:
    """What a sampler makes of noise, in x's type."""

    def denoise(x_t: Array, t: Array) -> Array:
        return mixture_x0(x_t, *schedule.alpha_sigma(t), *DATA[data])

    return follow(plan(sampler, schedule, time_grid(steps, schedule, spacing)), denoise, x, jax.random.key(0))


def exact(x: Float[np.ndarray, " samples"], data: str) -> Float[np.ndarray, " samples"]:
    """Where the flow leads: noise and data are of one rank, so that the n-th smallest noise becomes the n-th datum."""
    centres, spread = DATA[data]
    probability = jax.scipy.stats.norm.cdf(x)
    low, high = min(centres) - 12 * spread, max(centres) + 12 * spread
    grid = np.linspace(low, high, 200_001)
    distribution = np.mean([jax.scipy.stats.norm.cdf(grid, centre, spread) for centre in centres], axis=0)
    return np.interp(probability, distribution, grid)


def steps_of(sampler: str, calls: int) -> int:
    """Steps that so many calls are enough for."""
    return (calls + 1) // 2 if sampler == "heun" else calls


def measure(calls: Sequence[int]) -> Iterator[Measurement]:
    """Every sampler on every grid."""
    cases = [
        (data, sampler, spacing, count, dtype)
        for data in DATA
        for sampler in (*DETERMINISTIC, *STOCHASTIC)
        for spacing in SPACINGS
        for count in calls
        for dtype in ("float64", "float32")
        if dtype == "float64" or sampler in DETERMINISTIC
    ]
    with jax.enable_x64(True):
        x = noise()
        for data, sampler, spacing, count, dtype in tqdm.tqdm(cases, unit="case"):
            steps = steps_of(sampler, count)
            result = np.float64(sampled(jnp.asarray(x, dtype), data, sampler, spacing, steps))
            expected = exact(x, data)
            if sampler in DETERMINISTIC:
                error = np.sqrt(np.square(result - expected).mean())
            else:
                error = abs(result.std() / expected.std() - 1)
            yield Measurement(data, sampler, spacing, count, dtype, float(error))


def draw(measurements: Sequence[Measurement]) -> Figure:
    """Error against calls: of each data set and kind of sampler a panel."""
    figure, axes = plt.subplots(len(DATA), 2, figsize=(11, 4 * len(DATA)), squeeze=False, layout="constrained")

    for row, data in zip(axes, DATA, strict=True):
        for axis, samplers in zip(row, (DETERMINISTIC, STOCHASTIC), strict=True):
            for colour, sampler in enumerate(samplers):
                for spacing, style in SPACINGS.items():
                    of_line = [m for m in measurements if (m.data, m.sampler, m.spacing) == (data, sampler, spacing)]
                    for dtype, alpha in (("float64", 1.0), ("float32", 0.3)):
                        line = [m for m in of_line if m.dtype == dtype]
                        label = f"{sampler}, {spacing}" if dtype == "float64" else None
                        calls, errors = [m.calls for m in line], [m.error for m in line]
                        axis.loglog(calls, errors, style, color=f"C{colour}", alpha=alpha, label=label, linewidth=1.5)
            kind = "root mean square error" if samplers == DETERMINISTIC else "relative error of the spread"
            axis.set(title=data, xlabel="calls of the network", ylabel=kind)
            axis.legend(fontsize=7)
            axis.grid(alpha=0.3)
    return figure


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_string("output", "workdir/sampler_convergence", "Where picture and table go.")


def main(_argv: list[str]) -> None:
    """Entry point."""
    output = pathlib.Path(FLAGS.output)
    output.mkdir(parents=True, exist_ok=True)
    measurements = list(measure(CALLS))
    draw(measurements).savefig(output / "sampler_convergence.png", dpi=130)
    with (output / "sampler_convergence.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, [field.name for field in dataclasses.fields(Measurement)])
        table.writeheader()
        table.writerows(map(dataclasses.asdict, measurements))
    for data in DATA:
        print(f"\n{data}, float64: error after so many calls\n{'':34s}" + "".join(f"{calls:>10d}" for calls in CALLS))
        for sampler in (*DETERMINISTIC, *STOCHASTIC):
            for spacing in SPACINGS:
                line = [m for m in measurements if (m.data, m.sampler, m.spacing) == (data, sampler, spacing)]
                errors = (m.error for m in line if m.dtype == "float64")
                print(f"{f'{sampler}, {spacing}':34s}" + "".join(f"{error:10.1e}" for error in errors))
    print(f"\npicture and table: {output}")


if __name__ == "__main__":
    platform.configure()
    define_flags()
    app.run(main)
