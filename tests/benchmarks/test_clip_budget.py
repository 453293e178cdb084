"""FLOPs and seconds of a pipeline, from made-up stages."""

import numpy as np

from benchmarks import clip_budget
from benchmarks.super_resolution_cost import Stage, Work
from configs import ssr, stunet
from lumiere_jax.abstract_program import forward_flops


def test_row(monkeypatch):
    """Guided steps count twice, windows all; the base model takes its own number of steps, at half of the peak."""
    works = {
        "base": Work(1e12, 80e12, 1, True, 999),
        "larger": Work(2e12, 16e12, 13, True, 10),
        "largest": Work(5e12, 40e12, 13, False, 20),
    }
    monkeypatch.setattr(clip_budget, "work_of", lambda stage: works[stage.name])
    monkeypatch.setattr(clip_budget, "DEVICES", {"a chip": 1e15})
    base, larger, largest = (Stage(name, f"file:{name}", 1) for name in works)
    # 80 x 2 x 25 = 4000; + 16 x 13 x 2 x 10 = 4160; + 40 x 13 x 20 = 10400 TFLOP
    expected = "| `file:base` → `file:larger` → `file:largest` | 25 + 10 + 20 | 4.0 | 8 | 18.6 | 37 |"
    assert clip_budget.row(base, (larger, largest)) == expected


def test_a_measured_row():
    row = clip_budget.measured_row("prompt → clip", 20, 3e12, 6.0, 2e12)
    assert row == "| prompt → clip | 20 | 3.00 | 6.0 | 500 | 25 % |"


def test_what_is_measured_is_what_ships(monkeypatch):
    """Two stages; FLOPs are those of all steps and windows, and of both halves of guidance."""
    monkeypatch.setattr(clip_budget, "seconds_of", lambda make: 2.0)
    monkeypatch.setattr(clip_budget, "sample_videos", lambda run, prompts: np.zeros((1, 40, 32, 32, 3), np.float32))
    (base, steps, flops, _), (larger, more_steps, more_flops, _) = clip_budget.stages()
    assert base == "prompt → 40×32×32"
    assert flops == 2 * steps * forward_flops(stunet.get_config("shapes"))
    assert larger == "→ 40×64×64, in 7 windows"
    guided = 1 if ssr.get_config("demo").sampling.guidance == 1.0 else 2
    assert more_flops == 7 * guided * more_steps * forward_flops(ssr.get_config("demo"))
