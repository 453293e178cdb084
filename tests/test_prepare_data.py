"""The command, on every kind of bad input, killed, and with a full disk."""

import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from raw_videos import brightening, scenes, write_at_times, write_audio_only, write_avi, write_rotated

from configs import text_to_image
from lumiere_jax import train
from lumiere_jax.data import video_io
from lumiere_jax.data.open_dataset import open_dataset
from lumiere_jax.data.prepared_clips import open_prepared
from lumiere_jax.prepare_data import parse_shard, parse_splits

ROOT = pathlib.Path(__file__).parent.parent
SMALL = ("--frames=4", "--fps=4", "--size=16")


def command(*arguments):
    return [sys.executable, "-m", "lumiere_jax.prepare_data", *SMALL, *map(str, arguments)]


def run(*arguments, **options):
    return subprocess.run(
        command(*arguments), cwd=ROOT, check=False, capture_output=True, text=True, timeout=300, **options
    )


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six videos that are good, however unusual, and many that are not."""
    root = tmp_path_factory.mktemp("videos")
    good = {}
    write_at_times(root / "variable.mp4", brightening(12), np.cumsum([0.05, 0.2] * 6))
    write_rotated(root / "rotated.mp4", brightening(15, 32, 16), 10)
    write_at_times(root / "ten_bit.mp4", brightening(15, 32, 48), np.arange(15) / 10, pix_fmt="yuv420p10le")
    write_at_times(root / "odd.mp4", brightening(15, 31, 17, first=3), np.arange(15) / 10, pix_fmt="yuv444p")
    video_io.write_mp4(root / "cuts.mp4", scenes(12, 5, 13), 10)
    write_avi(root / "old.AVI", brightening(30, 32, 48), 25)
    for name in ("variable.mp4", "rotated.mp4", "ten_bit.mp4", "odd.mp4", "old.AVI"):
        good[name] = 1
    good["cuts.mp4"] = 2

    data = video_io.encode_mp4(np.random.default_rng(0).integers(0, 256, (30, 32, 32, 3), dtype=np.uint8), 10)
    (root / "truncated.mp4").write_bytes(data[: len(data) // 2])
    damaged = bytearray(data)
    damaged[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    (root / "damaged.mp4").write_bytes(damaged)
    (root / "zero.mp4").touch()
    (root / "text.mp4").write_text("no video")
    write_audio_only(root / "audio.mp4")
    video_io.write_mp4(root / "one_frame.mp4", brightening(1), 10)
    video_io.write_mp4(root / "tiny.mp4", brightening(15, 12, 40), 10)
    (root / "rotated_copy.mp4").write_bytes((root / "rotated.mp4").read_bytes())
    for name in ("uncaptioned.mp4", "long_caption.mp4", "latin_1.mp4"):
        video_io.write_mp4(root / name, brightening(15, first=len(name)), 10)
    with open(root / "huge.mp4", "wb") as file:
        file.truncate(5 << 30)  # five gigabytes without a video in them, and without blocks on the disk
    (root / "dangling.mp4").symlink_to(root / "nowhere")
    lines = [f"{path.name},a video".encode() for path in sorted(root.iterdir()) if path.name != "uncaptioned.mp4"]
    lines = [line for line in lines if not line.startswith((b"long_caption", b"latin_1"))]
    lines += [b"long_caption.mp4," + b"x" * 10_000, b"latin_1.mp4,caf\xe9", b"old.AVI,twice", b"gone.mp4,a video"]
    (root / "captions.csv").write_bytes(b"\n".join([b"file,caption", *lines]))
    return root, good


@pytest.fixture(scope="module")
def made(folder, tmp_path_factory):
    """What the command makes of the folder when nothing stops it, and what it says."""
    root, _ = folder
    output = tmp_path_factory.mktemp("made") / "data"
    return output, run(f"--videos={root}", f"--captions={root}/captions.csv", f"--output={output}", "--workers=2")


def test_bad_input_is_in_the_report_and_the_rest_is_used(folder, made):
    (_, good), (output, printed) = folder, made
    assert printed.returncode == 0, printed.stderr
    report = json.loads((output / "report.json").read_text())
    assert report["clips"] == dict(sorted(good.items()))
    reasons = {
        "audio.mp4": "has no video stream",
        "damaged.mp4": "frame",
        "dangling.mp4": "cannot be read (No such file or directory)",
        "gone.mp4": "has a caption, but no such video",
        "huge.mp4": "cannot be decoded",
        "latin_1.mp4": r"its caption is not UTF-8: caf\udce9",
        "long_caption.mp4": "its caption has 10000 characters, more than max_caption_length=1000",
        "one_frame.mp4": "too short, gives 1 of the 4 frames",
        "rotated_copy.mp4": "duplicate of rotated.mp4",
        "text.mp4": "cannot be decoded",
        "tiny.mp4": "frames are 12x40, smaller than the 16x16 asked for",
        "truncated.mp4": "frames",
        "uncaptioned.mp4": "no caption",
        "zero.mp4": "is empty, 0 bytes",
    }
    assert report["rejected"].keys() == reasons.keys()
    for file, reason in reasons.items():
        assert report["rejected"][file].startswith(f"{file}: "), file
        assert reason in report["rejected"][file], file
    assert report["caption_problems"] == ["row 19 of captions.csv names old.AVI again, row 7 counts"]
    # One screen, nothing silent, and a bar with the time that is left.
    assert len(printed.stdout.splitlines()) <= 25
    for text in ("7 clips of 1 s from 6 of", "rejected: 14 files", "captions that were not used: 1 rows"):
        assert text in printed.stdout
    assert "videos: 100%" in printed.stderr
    assert len(open_prepared(output).as_data_source(split="train")) == 7


def test_stopped_or_killed_it_goes_on(folder, made, tmp_path):
    """Stopped by Ctrl-C when the first video was ready, then killed when some more were."""
    (root, _), (whole, _) = folder, made
    arguments = (f"--videos={root}", f"--captions={root}/captions.csv", f"--output={tmp_path}/data", "--workers=1")
    parts = tmp_path / "data" / "host-00000-of-00001" / "parts"

    def stopped(ready, how):
        """Its exit status after a signal when so many videos were ready."""
        process = subprocess.Popen(command(*arguments), cwd=ROOT, stderr=subprocess.DEVNULL)
        while process.poll() is None and (not parts.is_dir() or len(list(parts.glob("*.json"))) < ready):
            time.sleep(0.002)
        process.send_signal(how)
        return process.wait()

    for _ in range(5):
        statuses = [stopped(1, signal.SIGINT), stopped(4, signal.SIGKILL)]
        if 0 not in statuses:
            break
        shutil.rmtree(tmp_path / "data")  # on a busy machine it may end before it is seen that something is ready
    assert statuses == [1, -signal.SIGKILL]
    assert not (tmp_path / "data" / "dataset_info.json").exists()
    before = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.json")}
    assert before
    printed = run(*arguments)
    assert printed.returncode == 0, printed.stderr
    assert contents(tmp_path / "data") == contents(whole)


def test_a_disk_that_is_full_stops_it_and_it_goes_on(folder, made, tmp_path):
    (root, _), (whole, _) = folder, made
    output = tmp_path / "disk" / "data"
    output.parent.mkdir()
    arguments = (f"--videos={root}", f"--captions={root}/captions.csv", f"--output={output}", "--workers=1")
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(output.parent)]
    is_mounted = os.getuid() == 0 and subprocess.run(mount, check=False, capture_output=True).returncode == 0
    try:
        if is_mounted:
            printed = run(*arguments)
            assert "No space left on device" in printed.stderr
        else:  # where nothing can be mounted: no file may become as large as a part
            printed = run(*arguments, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000,) * 2))
            assert "File too large" in printed.stderr
        assert printed.returncode == 1
        assert "start the same command again" in printed.stderr
        assert "Traceback" not in printed.stderr
        assert not (output / "dataset_info.json").exists()
        if is_mounted:
            assert list(output.glob("host-*/parts/*.array_record"))  # what was done is kept
            subprocess.run([*mount[:4], "remount,size=50m", *mount[5:]], check=True)
        printed = run(*arguments)
        assert printed.returncode == 0, printed.stderr
        assert contents(output) == contents(whole)
    finally:
        if is_mounted:
            subprocess.run(["umount", str(output.parent)], check=True)


def test_all_rejected_is_a_failure(folder, tmp_path):
    root, _ = folder
    (tmp_path / "list.txt").write_text(f"{root}/text.mp4\n{root}/zero.mp4\n")
    printed = run(f"--videos={tmp_path}/list.txt", "--default_caption=x", f"--output={tmp_path}/data", "--workers=0")
    assert printed.returncode == 1
    assert "error: no video can be used" in printed.stderr
    assert "zero.mp4: is empty, 0 bytes" in printed.stderr
    assert "text.mp4: cannot be decoded" in printed.stderr
    assert (tmp_path / "data" / "report.json").is_file()


def test_hosts_and_join(folder, made, tmp_path):
    (root, _), (whole, _) = folder, made
    arguments = (f"--videos={root}", f"--captions={root}/captions.csv", f"--output={tmp_path}/data", "--workers=0")
    for shard in ("0/2", "1/2"):
        printed = run(*arguments, f"--shard={shard}")
        assert printed.returncode == 0, printed.stderr
        assert "--join" in printed.stdout
    printed = run(f"--output={tmp_path}/data", "--join")
    assert printed.returncode == 0, printed.stderr
    assert "7 clips of 1 s from 6 of" in printed.stdout
    reports = [json.loads((directory / "report.json").read_text()) for directory in (tmp_path / "data", whole)]
    assert reports[0]["clips"] == reports[1]["clips"]
    assert reports[0]["rejected"] == reports[1]["rejected"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--videos=absent", "--default_caption=x"], "error: videos: absent is no directory"),
        ([], "error: videos is empty"),
        (["--videos=.", "--size=15"], "error: size must be even"),
        (["--join"], "error: output: out holds nothing to be joined"),
    ],
)
def test_bad_arguments(arguments, message):
    printed = run(*arguments, "--output=out")
    assert printed.returncode == 1
    assert message in printed.stderr
    assert "Traceback" not in printed.stderr
    assert not (ROOT / "out").exists()


def test_flags_of_several_values():
    assert parse_splits("train") == {"train": 1}
    assert parse_splits("train:0.95,validation:.05") == {"train": 0.95, "validation": 0.05}
    for text in ("", "train,train", "train:-1", "Train/x", "train:0.5,"):
        with pytest.raises(ValueError, match="split="):
            parse_splits(text)
    assert parse_shard("1/3") == (1, 3)
    for text in ("1", "3/3", "a/b", "-1/2"):
        with pytest.raises(ValueError, match="shard="):
            parse_shard(text)


def test_trains_on_it(folder, made, tmp_path):
    config = text_to_image.get_config("test")
    config.dataset.update({"name": "prepared", "path": str(made[0])})
    config.training.update({"steps": 1, "preview_every": 0})
    train.train(config, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints").is_dir()
    # Previews of prompts that its small tokenizer cuts into too many pieces: an error before training, not after.
    config.training.preview_every = 1
    config.sampling.preview_prompts = ("a zebra quickly jumps over extravagant foxes",) * 2
    with pytest.raises(ValueError, match=r"prompt 'a zebra .* tokens .* the limit is"):
        train.train(config, tmp_path / "another")
    assert not (tmp_path / "another" / "checkpoints").exists()
    training, validation = open_dataset(config.dataset)
    assert len(training) == len(validation) == 7  # one split, which serves as both
    for path, message in (("", r"dataset\.path is empty"), (str(tmp_path), "holds no prepared data set")):
        config.dataset.path = path
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            open_dataset(config.dataset)
