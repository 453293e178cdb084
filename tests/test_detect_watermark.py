"""The command that looks for watermarks: what it prints, and its exit status."""

import numpy as np
import pytest
from marked_clips import textured_clip
from small_runs import command

from lumiere_jax.data.video_io import write_mp4
from lumiere_jax.detect_watermark import p_value
from lumiere_jax.provenance.watermark import Watermark


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory, clip = tmp_path_factory.mktemp("files"), textured_clip()
    for name, key in {"public": "lumiere-jax", "private": "a key"}.items():
        write_mp4(directory / f"{name}.mp4", np.stack([Watermark(key).marked(image) for image in clip]), 8)
    write_mp4(directory / "cropped.mp4", np.stack([Watermark().marked(image) for image in clip])[:, 5:77, 9:81], 8)
    write_mp4(directory / "clean.mp4", clip, 8)
    (directory / "broken.mp4").write_bytes(b"no video")
    return directory


@pytest.mark.parametrize(
    ("names", "options", "status", "lines"),
    [
        (
            ["public.mp4", "cropped.mp4"],
            [],
            0,
            ["public.mp4: watermark found (score ", "cropped.mp4: watermark found (score "],
        ),
        (
            ["private.mp4", "clean.mp4", "public.mp4"],
            ["--key=a key"],
            1,
            ["private.mp4: watermark found", "clean.mp4: no watermark", "public.mp4: no watermark"],
        ),
        (
            ["broken.mp4", "none.mp4", "clean.mp4"],
            [],
            2,
            ["broken.mp4: cannot be decoded", "none.mp4: No such file", "clean.mp4: no watermark"],
        ),
        ([], [], 2, ["error: no file"]),
    ],
    ids=["all", "some", "unreadable", "none"],
)
def test_command(files, names, options, status, lines):
    process = command("detect_watermark", *options, *(files / name for name in names))
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == status, printed
    for line in lines:
        assert line in printed
    assert ("75% of the shorter side)" in printed) == ("cropped.mp4" in names)
    assert "Traceback" not in printed
    assert all(printed.count(name) == 1 for name in names)


def test_p_values_of_any_size():
    shown = {0.0: "1.00", -1.0: "0.10", -2.0: "1e-02", -6.5: "3e-07", -400.25: "6e-401"}
    assert {log10_p: p_value(log10_p) for log10_p in shown} == shown
