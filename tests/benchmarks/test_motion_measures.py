"""The table of measures and damages, on few clips."""

import numpy as np

from benchmarks.motion_measures import damaged, moving_clips, of_real_clips, table
from lumiere_jax.data.video_io import write_mp4
from lumiere_jax.evaluation.damages import DAMAGES
from lumiere_jax.evaluation.motion import motion_measures


def test_all_of_it(tmp_path, capsys):
    videos, scenes = moving_clips(3)
    assert videos.shape == (3, 80, 64, 64, 3)
    of_each = damaged(videos)
    rows = {name: motion_measures(clips, scenes, 16) for name, clips in of_each.items()}
    assert set(rows) == {"whole", *DAMAGES}
    assert rows["whole"]["trajectory error"]["mean"] < 0.03 < rows["shuffled"]["trajectory error"]["mean"]
    assert rows["frozen"]["adjacent frame error"]["mean"] == 0
    assert len(table(rows).splitlines()) == 2 + len(rows)
    write_mp4(tmp_path / "clip.mp4", np.rint((videos[0] + 1) * 127.5).astype(np.uint8), 16, crf=1)
    write_mp4(tmp_path / "short.mp4", np.zeros((8, 64, 64, 3), np.uint8), 16)
    real = of_real_clips([tmp_path / "clip.mp4", tmp_path / "short.mp4"])
    assert len(real) == 6
    assert "left out:" in (told := capsys.readouterr().out)
    assert "short.mp4 gives 8 frames" in told
    assert real["clip.mp4, frozen"]["adjacent frame error"] == 0 < real["clip.mp4, whole"]["adjacent frame error"]
