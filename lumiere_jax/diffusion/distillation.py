"""Progressive distillation: a student that does in one DDIM step what its teacher does in two (Salimans & Ho 2022).

The student is trained on the times of a grid of N steps, i / N. From the same noised clip the teacher takes two steps
of half the length; what the student must predict is the clean clip from which one step would have led to the same
place. A teacher with guidance is distilled with it (Meng et al. 2023), so that the student needs none. With N halved
again and again, each student being the next one's teacher, few steps are left. Nothing here is from the paper.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lumiere_jax.diffusion.noise_schedule import NoiseSchedule
from lumiere_jax.diffusion.prediction import Denoiser, per_example


def student_times(times: Float[Array, " batch"], steps: int) -> Float[Array, " batch"]:
    """Times in (0, 1] moved up to the next one that the student will be asked about: i / steps, i from 1 to `steps`."""
    return jnp.clip(jnp.ceil(times * steps), 1, steps) / steps


def two_step_x0(denoise: Denoiser, schedule: NoiseSchedule, steps: int) -> Denoiser:
    """What the student must predict: `(x_t, t [batch]) -> x0`, t of `student_times`.

    With x_s where the teacher's two DDIM steps lead, s = t - 1 / steps, that is (Salimans & Ho 2022, algorithm 2)

        x0 = (x_s - sigma_s / sigma_t x_t) / (alpha_s - sigma_s / sigma_t alpha_t),

    and where s = 0, which samplers end at with their last prediction: the teacher's last prediction.

    Args:
      denoise: the teacher, `(x_t, t [batch]) -> x0`, guided and thresholded as it is sampled.
      schedule: its own.
      steps: of the student.
    """

    def towards(x: Array, t: Array, s: Array) -> tuple[Array, Array]:
        """One DDIM step, and the prediction that it was taken by."""
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
        x0 = denoise(x, t)
        share = sigma_s / sigma_t
        return per_example(share, x) * x + per_example(alpha_s - share * alpha_t, x) * x0, x0

    def target(x_t: Array, t: Array) -> Array:
        middle, end = t - 0.5 / steps, jnp.maximum(t - 1.0 / steps, 0.0)
        x_middle, _ = towards(x_t, t, middle)
        x_end, last = towards(x_middle, middle, end)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(end)
        share = sigma_s / sigma_t
        x0 = (x_end - per_example(share, x_t) * x_t) / per_example(alpha_s - share * alpha_t, x_t)
        goes_on = per_example((end > 0.5 / steps).astype(x_t.dtype), x_t)
        return jax.lax.stop_gradient(jnp.where(goes_on, x0, last))

    return target
