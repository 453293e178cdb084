"""FLOPs and seconds of a pipeline, from made-up stages."""

from benchmarks import clip_budget
from benchmarks.super_resolution_cost import Stage, Work


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
