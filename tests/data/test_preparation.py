"""Prepared data sets: the same bytes whoever made them, however often they were stopped."""

import dataclasses
import fcntl
import itertools
import json
import pathlib
import shutil

import numpy as np
import pytest
from raw_videos import brightening, scenes, write_at_times, write_avi

from lumiere_jax.data import prepared_clips, video_io
from lumiere_jax.data.clip_extraction import ClipSettings
from lumiere_jax.data.open_dataset import captions_of
from lumiere_jax.data.preparation import join_hosts, prepare_clips, read_report
from lumiere_jax.data.prepared_clips import PreparedClips, open_prepared
from lumiere_jax.data.source_videos import find_sources

SETTINGS = ClipSettings(frames=4, fps=4, size=16)
SMALL_SHARDS = 6000  # bytes: several shards


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five files give ten clips, two give none."""
    root = tmp_path_factory.mktemp("videos")
    (root / "deeper").mkdir()
    video_io.write_mp4(root / "long.mp4", brightening(35, 24, 40), 10, crf=2)
    write_at_times(root / "UPPER.MP4", brightening(25, 31, 17, first=1), np.arange(25) / 25, pix_fmt="yuv444p")
    video_io.write_mp4(root / "deeper" / "sixty.mov", brightening(60, 16, 16), 60, crf=2)
    video_io.write_mp4(root / "scenes.mp4", scenes(23, 7, 25), 10, crf=10)
    write_avi(root / "old.AVI", brightening(30, 32, 48), 25)
    video_io.write_mp4(root / "short.mp4", brightening(7), 10, crf=2)
    cut = video_io.encode_mp4(np.random.default_rng(0).integers(0, 256, (30, 32, 32, 3), dtype=np.uint8), 10)
    (root / "cut.mp4").write_bytes(cut[: len(cut) // 2])
    return root


@pytest.fixture(scope="module")
def sources(folder):
    return find_sources(folder, default_caption="größer", splits={"train": 0.6, "validation": 0.4})


def prepare(sources, output, **options):
    return prepare_clips(sources, output, SETTINGS, **({"shard_bytes": SMALL_SHARDS} | options))


def contents(directory):
    directory = pathlib.Path(directory)
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def made(sources, tmp_path_factory):
    """Made in one go, without further processes."""
    directory = tmp_path_factory.mktemp("made") / "data"
    prepare(sources, directory)
    return directory


def records(directory):
    found = {}
    builder = open_prepared(directory)
    for split in builder.info.splits:
        for record in builder.as_data_source(split=split):
            found[split, record["source"].decode(), round(float(record["start"]), 3)] = record
    return found


def test_records_and_report(made, sources):
    found = records(made)
    split = {video.name: video.split for video in sources.videos}
    assert set(split.values()) == {"train", "validation"}
    starts = {
        "UPPER.MP4": [0],
        "deeper/sixty.mov": [0],
        "long.mp4": [0, 1, 2],
        "old.AVI": [0],
        "scenes.mp4": [0, 1, 3, 4],
    }
    assert found.keys() == {(split[file], file, start) for file in starts for start in starts[file]}
    facts = {"UPPER.MP4": (25, 31, 17), "deeper/sixty.mov": (60, 16, 16), "long.mp4": (10, 24, 40)}
    for (_, file, start), record in found.items():
        assert record["caption"].decode() == "größer"
        assert record["fps"] == 4
        assert record["end"] == pytest.approx(start + 1)
        if file in facts:
            shape = record["source_fps"], record["source_height"], record["source_width"]
            np.testing.assert_allclose(shape, facts[file], rtol=0.05)
        frames, times = video_io.decode_video(record["clip"])
        assert frames.shape == (4, 16, 16, 3)
        np.testing.assert_allclose(times, [0, 0.25, 0.5, 0.75], atol=1e-6)

    report = read_report(made)
    assert report["clips"] == {file: len(starts[file]) for file in sorted(starts)}
    assert report["rejected"].keys() == {"cut.mp4", "short.mp4"}
    assert report["rejected"]["short.mp4"] == "short.mp4: too short, gives 3 of the 4 frames of a clip at 4 fps"
    assert report["left_out"]["scenes.mp4"] == [
        [2.0, 2.2, "has 2 of the 4 frames of a clip"],
        [2.3, 2.8, "has 3 of the 4 frames of a clip"],
        [5.0, 5.2, "has 2 of the 4 frames of a clip"],
    ]
    assert sum(part["clips"] for part in report["splits"].values()) == len(found) == 10
    assert sum(part["shards"] for part in report["splits"].values()) > 2
    assert report["videos"]["UPPER.MP4"]["height"] == 31
    assert {path.name.split(".")[0] for path in made.iterdir()} == {
        "dataset_info",
        "features",
        "report",
        *(f"{file}-{split}" for file in ("captions", "video_clips") for split in ("train", "validation")),
    }


@pytest.mark.parametrize("workers", [1, 3])
def test_the_same_bytes_from_any_number_of_processes(sources, made, tmp_path, workers):
    prepare(sources, tmp_path / "data", workers=workers)
    assert contents(tmp_path / "data") == contents(made)


class Stopped(BaseException):
    """Unlike an error it is caught by nothing, as kill -9 is."""


def test_the_same_bytes_wherever_it_was_stopped(folder, tmp_path, monkeypatch):
    """Stopped after each file that got its name, then started again; and no video that was ready is read again."""
    (tmp_path / "list.txt").write_text("\n".join(f"{folder}/{name}" for name in ("long.mp4", "short.mp4", "UPPER.MP4")))
    sources = find_sources(tmp_path / "list.txt", default_caption="x")
    prepare(sources, tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    replace, writes, read = pathlib.Path.replace, [], []
    extract_clips = prepared_clips.extract_clips

    def recorded(path, settings, *, name):
        read.append(name)
        return extract_clips(path, settings, name=name)

    monkeypatch.setattr(prepared_clips, "extract_clips", recorded)
    for stop in itertools.count(1):
        writes.clear()
        read.clear()

        def stopping(self, target, stop=stop):
            writes.append(target.name)
            replace(self, target)
            if len(writes) == stop:
                raise Stopped

        monkeypatch.setattr(pathlib.Path, "replace", stopping)
        try:
            prepare(sources, tmp_path / "data")
            break
        except Stopped:
            writes.append("stopped")
        prepare(sources, tmp_path / "data")
        assert contents(tmp_path / "data") == whole, writes
        # Only a part that is there without its outcome is made again.
        assert len(read) == 3 + (stop in (1, 3)), writes
        shutil.rmtree(tmp_path / "data")
    # Two parts, three outcomes, the plan, a shard, the marker of joining, the shard moved, captions, the report.
    assert stop == 12


def test_other_captions_while_it_is_not_finished(sources, made, tmp_path, monkeypatch):
    """Stopped when some shards had taken their parts, started with one other caption, and again with the first ones."""
    output = tmp_path / "data"
    replace, shards = pathlib.Path.replace, []

    def stopping(self, target):
        if "shards" in str(target):
            shards.append(target)
            if len(shards) % 3 == 0:
                raise Stopped
        return replace(self, target)

    monkeypatch.setattr(pathlib.Path, "replace", stopping)
    with pytest.raises(Stopped):
        prepare(sources, output)
    other = [dataclasses.replace(video, caption="other") for video in sources.videos[-1:]]
    with pytest.raises(Stopped):
        prepare(dataclasses.replace(sources, videos=sources.videos[:-1] + other), output)
    monkeypatch.undo()
    prepare(sources, output)
    assert contents(output) == contents(made)


def test_a_finished_data_set_is_not_touched(sources, folder, made):
    before = contents(made)
    report = prepare(sources, made, workers=1)
    assert report == read_report(made)
    with pytest.raises(ValueError, match=r"holds a data set made of other videos, captions or settings .*'size': 16"):
        prepare(find_sources(folder, default_caption="other"), made)
    with pytest.raises(ValueError, match="made of other"):
        prepare_clips(sources, made, ClipSettings(frames=4, fps=4, size=8))
    assert contents(made) == before


@pytest.mark.parametrize("hosts", [2, 4, 9])
def test_hosts_together_give_the_same_records(sources, made, tmp_path, hosts):
    output = tmp_path / "data"
    for host in reversed(range(hosts)):
        with pytest.raises(FileNotFoundError, match=r"is not finished|holds no prepared"):
            open_prepared(output)
        prepare(sources, output, host=host, hosts=hosts)
    report = join_hosts(output)
    assert sum(part["clips"] for part in report["splits"].values()) == 10
    together, alone = records(output), records(made)
    assert together.keys() == alone.keys()
    for key, record in together.items():
        assert record == alone[key]
    for field in ("made_from", "clips", "rejected", "left_out", "videos"):
        assert report[field] == read_report(made)[field]
    assert not list(output.glob("host-*"))
    assert prepare(sources, output) == report


def test_captions_without_reading_clips(folder, tmp_path, monkeypatch):
    """In the order of the records, over several hosts and shards, some videos giving more clips than others."""
    captions = tmp_path / "captions.csv"
    names = ("long.mp4", "UPPER.MP4", "deeper/sixty.mov", "scenes.mp4", "old.AVI")
    captions.write_text("file,caption\n" + "".join(f"{name},this is {name}\n" for name in names))
    sources, output = find_sources(folder, captions=captions, default_caption="other"), tmp_path / "data"
    for host in range(2):
        prepare(sources, output, host=host, hosts=2, shard_bytes=SMALL_SHARDS // 3)
    join_hosts(output)
    clips = PreparedClips(open_prepared(output), "train")
    expected = [clips[index]["caption"].decode() for index in range(len(clips))]
    assert len(set(expected)) == 5 < len(expected)
    assert len(list(output.glob("*.array_record*"))) > 2
    read, getitem = [], PreparedClips.__getitem__
    monkeypatch.setattr(PreparedClips, "__getitem__", lambda self, index: read.append(index) or getitem(self, index))
    assert captions_of(clips) == expected
    assert len(read) < len(expected)  # one now and then by the type checker of the tests
    file = output / "captions-train.json"
    file.write_text(json.dumps(json.loads(file.read_text())[1:]))
    with pytest.raises(ValueError, match=rf"has \d captions for {len(expected)} clips: prepare the data again"):
        captions_of(PreparedClips(open_prepared(output), "train"))


def test_hosts_that_do_not_fit_together(sources, folder, tmp_path):
    output = tmp_path / "data"
    with pytest.raises(ValueError, match="nothing to be joined"):
        join_hosts(output)
    prepare(sources, output, host=0, hosts=2)
    with pytest.raises(ValueError, match="lacks host-00001-of-00002"):
        join_hosts(output)
    (output / "host-00001-of-00002").mkdir()
    with pytest.raises(ValueError, match=r"host-00001-of-00002 in .* not finished"):
        join_hosts(output)
    prepare(find_sources(folder, default_caption="other"), output, host=1, hosts=2)
    with pytest.raises(ValueError, match="prepared other videos, captions or settings from each other"):
        join_hosts(output)
    prepare(sources, output, host=1, hosts=2)
    shard = next((output / "host-00001-of-00002" / "shards").iterdir())
    shard.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"not finished, .* is missing"):
        join_hosts(output)
    shard.with_name(shard.name).parent.mkdir(exist_ok=True)
    (tmp_path / "elsewhere").rename(shard)
    (output / "host-00000-of-00003").mkdir()
    with pytest.raises(ValueError, match=r"shares of \[2, 3\] hosts"):
        join_hosts(output)
    (output / "host-00000-of-00003").rmdir()
    assert sum(join_hosts(output)["clips"].values()) == 10


def test_two_runs_at_once_are_one_too_many(sources, tmp_path):
    share = tmp_path / "host-00000-of-00001"
    share.mkdir()
    with open(share / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another run is at work"):
            prepare(sources, tmp_path)


def test_nothing_usable_is_an_error_with_every_reason(folder, tmp_path):
    sources = find_sources(folder)
    with pytest.raises(video_io.VideoError, match="no video can be used") as caught:
        prepare(sources, tmp_path / "data")
    assert str(caught.value).count("no caption") == 7
    report = json.loads((tmp_path / "data" / "report.json").read_text())
    assert len(report["rejected"]) == 7
    with pytest.raises(FileNotFoundError, match="holds no prepared data set"):
        open_prepared(tmp_path / "data")
    prepare(find_sources(folder, default_caption="x"), tmp_path / "data")  # what failed is not in the way
    assert sum(read_report(tmp_path / "data")["clips"].values()) == 10


def test_a_bug_that_one_video_finds_is_in_the_report(sources, tmp_path, monkeypatch):
    encode = prepared_clips.encode_mp4

    def failing(images, *arguments, **options):
        if images[0].std() > 20:
            raise KeyError("texture")
        return encode(images, *arguments, **options)

    monkeypatch.setattr(prepared_clips, "encode_mp4", failing)
    report = prepare(sources, tmp_path / "data")
    assert report["rejected"]["scenes.mp4"] == "scenes.mp4: unexpected KeyError: 'texture'"
    assert report["clips"]["long.mp4"] == 3


def test_bad_arguments(sources, tmp_path):
    for options in ({"host": 2, "hosts": 2}, {"workers": -1}, {"shard_bytes": 0}):
        with pytest.raises(ValueError, match="needs 0 <= host < hosts, workers >= 0"):
            prepare(sources, tmp_path / "data", **options)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "dataset_info.json").write_text("{}")
    with pytest.raises(ValueError, match="holds another data set"):
        prepare(sources, tmp_path / "other")


def test_beam_gives_the_same_bytes(sources, made, tmp_path):
    pytest.importorskip("apache_beam")
    prepare(sources, tmp_path / "data", beam_options=["--runner=DirectRunner"])
    assert contents(tmp_path / "data") == contents(made)
