"""The sampling command: its flags reach the pipelines, and flags that say nothing are told."""

import json

import pytest
from absl import flags
from marked_clips import said_in
from PIL import Image
from random_runs import random_run, write_run
from small_runs import command

from lumiere_jax import sample_flags
from lumiere_jax.data.video_io import decode_video
from lumiere_jax.provenance.watermark_detection import detect
from lumiere_jax.sample_flags import approximation_flags, enlarging_flags, window_flags


def test_windows_tiles_and_a_chain(tmp_path):
    write_run(random_run(), tmp_path / "base")
    write_run(random_run(super_resolution=True), tmp_path / "ssr")
    options = [f"--checkpoint={tmp_path / 'base'}", "--prompt=a red circle"]
    options += ["--frames=10", "--height=16", "--width=8", "--window=4", "--window_batch=2", "--guidance_interval=.3,1"]
    options += ["--sampler=heun", "--spacing=karras", "--guidance_rescale=.7", "--negative_prompt=a blue star"]
    options += ["--denoising", "--window_weights=feathered", "--half_rate_from=.5", "--int8"]
    options += [f"--super_resolution={tmp_path / 'ssr'}"] * 2 + ["--watermark", "--watermark_key=a key"]
    options += ["--tile=16", "--memory_gib=1", "--super_resolution_window_batch=3", f"--output={tmp_path / 'clips'}"]
    process = command("sample", *options)
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, printed
    # 3 windows in time, that share 1 frame; tiles that share an eighth: 3x1, then 5x3.
    assert "10 frames of 16x32 in 9 windows of 4x16x16, 3 at once" in printed
    assert "10 frames of 32x64 in 45 windows of 4x16x16, 3 at once" in printed
    clips = {path.name.removesuffix(".mp4"): path for path in (tmp_path / "clips").glob("*.mp4")}
    small, large = (clips[name] for name in sorted(clips))
    assert decode_video(small)[0].shape == (10, 16, 8, 3)
    assert decode_video(large)[0].shape == (10, 64, 32, 3)
    made = json.loads(small.with_suffix(".json").read_text())
    assert (made["window"], made["weights"]) == ([4, 1], "feathered")
    assert made["guidance_interval"] == [0.3, 1.0]
    assert made["negative_prompt"] == "a blue star"
    assert made["checkpoint"]["kernels"] == "int8"
    assert made["approximations"] == {"deep_features_every": 1, "shallow_layers": 1, "half_rate_from": 0.5}
    with Image.open(small.with_name(small.stem + "_denoising.png")) as picture:  # 2 steps of heun: 3 calls
        assert picture.size == (3 * 8 + 2 * 2, 16)
    assert made["watermark"].pop("score") == pytest.approx(detect(small, "a key").score, abs=0.01)
    assert made["watermark"] == {
        "method": "spread spectrum, 1",
        "key": "private",
        "found": detect(small, "a key").found,
    }
    assert said_in(small.with_name(small.stem + "_denoising.png"))[1]["sampler"] == "heun"
    enlarged = json.loads(large.with_suffix(".json").read_text())["super_resolution"]
    assert [(stage["tile"], stage["weights"]) for stage in enlarged] == [([16, 2], "feathered")] * 2


@pytest.mark.parametrize(
    ("choices_of", "given", "message"),
    [
        (window_flags, {"window_overlap": 2}, "--window_overlap=2 says nothing without --window"),
        (window_flags, {"window_batch": 1}, "--window_batch=1 says nothing without --window"),
        (window_flags, {"window_weights": "uniform"}, "--window_weights=uniform says nothing without windows"),
        (approximation_flags, {"shallow_layers": 2}, "--shallow_layers=2 says nothing without --deep_features"),
        (enlarging_flags, {"tile_overlap": 0}, "--tile_overlap=0 says nothing without --tile"),
    ],
)
def test_flags_that_say_nothing(monkeypatch, choices_of, given, message):
    values = flags.FlagValues()
    for name in ("window", "window_overlap", "window_batch", "tile", "tile_overlap"):
        flags.DEFINE_integer(name, given.get(name), "", flag_values=values)
    flags.DEFINE_integer("deep_features_every", 1, "", flag_values=values)
    flags.DEFINE_integer("shallow_layers", given.get("shallow_layers", 1), "", flag_values=values)
    flags.DEFINE_string("window_weights", given.get("window_weights"), "", flag_values=values)
    flags.DEFINE_multi_string("super_resolution", [], "", flag_values=values)
    values.mark_as_parsed()
    monkeypatch.setattr(sample_flags, "FLAGS", values)
    with pytest.raises(ValueError, match=message):
        choices_of()
