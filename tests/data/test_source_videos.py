import json
import os
import subprocess
import sys

import pytest

from lumiere_jax.data.source_videos import find_sources, split_of


@pytest.fixture
def folder(tmp_path):
    """Finding opens no video: any bytes will do."""
    root = tmp_path / "clips"
    for file in ("a.mp4", "B.MP4", "deeper/c.mov", "deeper/still/d.webm", "deeper/a.mp4", ".hidden/e.mp4", "notes.md"):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(file.encode())
    return root


def names(sources):
    return [video.name for video in sources.videos]


def test_folder_pattern_and_list_name_the_same_files_alike(folder, tmp_path):
    everything = ["B.MP4", "a.mp4", "deeper/a.mp4", "deeper/c.mov", "deeper/still/d.webm"]
    found = find_sources(folder, default_caption="x")
    assert names(found) == everything
    assert found.other_files == {".md": 1}
    assert not found.rejected
    for pattern, expected in {
        "*.mp4": ["a.mp4"],
        "**/*.mp4": ["a.mp4", "deeper/a.mp4"],
        "*/*": ["deeper/a.mp4", "deeper/c.mov"],
        "**/still/*": ["deeper/still/d.webm"],
        "[ab].m*": ["a.mp4"],
    }.items():
        assert names(find_sources(f"{folder}/{pattern}", default_caption="x")) == expected, pattern
    listed = folder / "list.txt"
    listed.write_text("deeper/c.mov\n\na.mp4\n./a.mp4\nnotes.md\nabsent.mp4\n")
    found = find_sources(listed, default_caption="x")
    assert names(found) == ["a.mp4", "deeper/c.mov", "notes.md"]  # a list takes what it names
    assert found.rejected == {
        "a.mp4 (line 4)": "a.mp4 (line 4): is named twice in list.txt",
        "absent.mp4": "absent.mp4: absent.mp4 cannot be read (No such file or directory)",
    }


def test_captions_from_a_file_else_from_the_text_beside_else_the_default(folder, tmp_path):
    named = {"a.mp4": 'a wall, "gray"', "deeper/c.mov": "größer", "gone.mp4": "not there", "B.MP4": " "}
    csv, jsonl = tmp_path / "captions.csv", tmp_path / "captions.jsonl"
    rows = [f'{file},"{caption.replace(chr(34), chr(34) * 2)}"' for file, caption in named.items()]
    csv.write_text("\n".join(["file,caption", *rows]), encoding="utf-8")
    rows = [json.dumps({"file": file, "caption": caption}) for file, caption in named.items()]
    jsonl.write_text("\n\n".join(rows) + "\n", encoding="utf-8")
    (folder / "B.txt").write_text("\ufeffa beach\n", encoding="utf-8")
    for captions in (csv, jsonl):
        found = find_sources(folder, captions=captions)
        by_name = {video.name: video.caption for video in found.videos}
        assert by_name == {"a.mp4": 'a wall, "gray"', "deeper/c.mov": "größer", "B.MP4": "a beach"}
        assert found.rejected == {
            "deeper/a.mp4": "deeper/a.mp4: no caption; add one, or set default_caption",
            "deeper/still/d.webm": "deeper/still/d.webm: no caption; add one, or set default_caption",
            "gone.mp4": "gone.mp4: has a caption, but no such video",
        }
        found = find_sources(folder, captions=captions, default_caption="any")
        assert {video.caption for video in found.videos} == {'a wall, "gray"', "größer", "a beach", "any"}


def test_bad_captions_cost_their_video_alone(folder, tmp_path):
    captions = tmp_path / "captions.csv"
    lines = [
        b"file,caption",
        b"a.mp4," + b"x" * 10_000,
        b"B.MP4,caf\xe9",
        b"deeper/c.mov,a car",
        b"deeper/c.mov,a boat",
        b"only one column",
        b",no file",
        b"deeper/still/d.webm," + b"y" * 200_000,
        b"deeper/a.mp4,fine",
    ]
    captions.write_bytes(b"\n".join(lines))
    found = find_sources(folder, captions=captions)
    assert {video.name: video.caption for video in found.videos} == {"deeper/c.mov": "a car", "deeper/a.mp4": "fine"}
    assert found.rejected == {
        "a.mp4": "a.mp4: its caption has 10000 characters, more than max_caption_length=1000",
        "B.MP4": r"B.MP4: its caption is not UTF-8: caf\udce9",
        "deeper/still/d.webm": "deeper/still/d.webm: no caption; add one, or set default_caption",
    }
    assert [problem.split(" of captions.csv ")[0] for problem in found.caption_problems] == [
        "row 4",
        "row 5",
        "row 6",
        "row 7",
    ]
    assert "names deeper/c.mov again, row 3 counts" in found.caption_problems[0]
    assert "needs file and caption" in found.caption_problems[1]
    assert "needs file and caption" in found.caption_problems[2]
    assert "is no CSV: field larger than field limit" in found.caption_problems[3]
    json.dumps(found.rejected, ensure_ascii=False).encode()  # can be written as UTF-8
    longer = find_sources(folder, captions=captions, max_caption_length=10_000)
    assert "a.mp4" in names(longer)

    jsonl = tmp_path / "captions.jsonl"
    jsonl.write_text('{"file": "a.mp4", "caption": "fine"}\nno json\n["a"]\n{"file": 3, "caption": "x"}\n')
    found = find_sources(folder, captions=jsonl)
    assert names(found) == ["a.mp4"]
    assert [problem[:34] for problem in found.caption_problems] == [
        "row 2 of captions.jsonl is no JSON",
        "row 3 of captions.jsonl needs file",
        "row 4 of captions.jsonl needs file",
    ]
    (folder / "B.txt").write_bytes(b"caf\xe9")
    assert "not UTF-8" in find_sources(folder, default_caption="x").rejected["B.MP4"]


def test_bad_files_are_found_without_opening_them(folder):
    (folder / "empty.mp4").touch()
    (folder / "dangling.mp4").symlink_to(folder / "nowhere.mp4")
    (folder / "loop.mp4").symlink_to(folder / "loop.mp4")
    os.mkfifo(folder / "pipe.mp4")
    (folder / "copy.mp4").write_bytes(b"a.mp4")
    (folder / "same_size.mp4").write_bytes(b"A.mp4")
    for name, end in {"long_1.mp4": b"1", "long_2.mp4": b"2", "long_3.mp4": b"1"}.items():
        (folder / name).write_bytes(bytes(100_000) + end)
    with open(os.fsencode(folder) + b"/caf\xe9.mp4", "wb") as file:
        file.write(b"name")
    (folder / "again").symlink_to(folder / "deeper", target_is_directory=True)
    (folder / "deeper" / "up").symlink_to(folder, target_is_directory=True)
    found = find_sources(folder, default_caption="x")
    rejected = found.rejected
    assert rejected["empty.mp4"] == "empty.mp4: is empty, 0 bytes"
    assert rejected["dangling.mp4"] == "dangling.mp4: dangling.mp4 cannot be read (No such file or directory)"
    assert "Too many levels of symbolic links" in rejected["loop.mp4"]
    assert rejected["pipe.mp4"] == "pipe.mp4: is no regular file"
    assert rejected["copy.mp4"] == "copy.mp4: duplicate of a.mp4"
    assert rejected["long_3.mp4"] == "long_3.mp4: duplicate of long_1.mp4"
    assert rejected[r"caf\udce9.mp4"].endswith("its name is not UTF-8; rename it")
    assert rejected["deeper"] == "deeper: is the folder again, by a link"
    assert rejected["again/up"] == "again/up: is the folder ., by a link"
    found_again = ["again/a.mp4", "again/c.mov", "again/still/d.webm"]
    assert names(found) == ["B.MP4", "a.mp4", *found_again, "long_1.mp4", "long_2.mp4", "same_size.mp4"]
    assert len(rejected) == 9


def test_a_folder_that_must_not_be_read_is_reported(folder, tmp_path):
    """As another user, where the tests run as root, whom nothing is forbidden."""
    (folder / "deeper" / "still").chmod(0)
    (folder / "a.mp4").chmod(0)
    code = (
        "import json, os, sys; sys.path[:0] = json.loads(sys.argv[3])\n"
        "from lumiere_jax.data.source_videos import find_sources\n"
        "if os.getuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "found = find_sources(sys.argv[1], default_caption='x')\n"
        "json.dump([found.rejected, [video.name for video in found.videos]], open(sys.argv[2], 'w'))\n"
    )
    for directory in (folder, *folder.parents):
        if directory.stat().st_uid == os.getuid() and str(directory).startswith("/tmp/"):
            directory.chmod(0o755)
    result = tmp_path / "result.json"
    result.touch()
    result.chmod(0o666)
    (folder / "deeper" / "still").chmod(0)
    command = [sys.executable, "-c", code, str(folder), str(result), json.dumps(sys.path)]
    try:
        subprocess.run(command, check=True, timeout=120)
    finally:
        (folder / "deeper" / "still").chmod(0o755)  # pytest wants to delete it
    rejected, found = json.loads(result.read_text())
    assert rejected == {
        "deeper/still": "deeper/still: folder cannot be read (Permission denied)",
        "a.mp4": "a.mp4: a.mp4 cannot be read (Permission denied)",
    }
    assert found == ["B.MP4", "deeper/a.mp4", "deeper/c.mov"]


def test_splits_follow_from_the_name_alone():
    splits = {"train": 0.9, "validation": 0.1}
    found = {f"{number}.mp4": split_of(f"{number}.mp4", splits) for number in range(2000)}
    assert 150 < list(found.values()).count("validation") < 250
    # The share of one split does not move videos between the others.
    assert {split_of(name, {"train": 9, "validation": 1}) for name in found if found[name] == "train"} == {"train"}
    assert split_of("a.mp4", None) == "train"


def test_bad_arguments(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"videos: .*absent is no directory"):
        find_sources(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"videos: .*absent of the pattern"):
        find_sources(f"{tmp_path}/absent/*.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no video"):
        find_sources(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        find_sources(folder, captions=tmp_path / "none.csv")
    (tmp_path / "c.csv").write_text("path,text\na.mp4,hello\n")
    with pytest.raises(ValueError, match=r"row 1 of c\.csv needs file and caption"):
        find_sources(folder, captions=tmp_path / "c.csv")
    (tmp_path / "d.csv").write_text("")
    with pytest.raises(ValueError, match=r"d\.csv is empty"):
        find_sources(folder, captions=tmp_path / "d.csv")
    with pytest.raises(ValueError, match=r"must be a \.csv or \.jsonl"):
        find_sources(folder, captions=tmp_path / "e.txt")
