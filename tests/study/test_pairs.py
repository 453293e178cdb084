"""Which clips are compared: the pairing rule, and what is refused."""

import json

import pytest
from study_raters import METHODS, write_pairs

from lumiere_jax.study.pairs import read_pairs


@pytest.fixture
def root(tmp_path):
    write_pairs(tmp_path, 3)
    return tmp_path


def read(root):
    return read_pairs(*(root / method for method in METHODS), root / "prompts.txt")


def test_lines_and_clips_in_order(root):
    prompts = root / "prompts.txt"
    prompts.write_text("\n".join(["", *prompts.read_text().splitlines(), "  ", ""]))
    pairs = read(root)
    assert [pair.prompt for pair in pairs] == [f"a thing of number {number}" for number in range(3)]
    assert [(pair.a.parent.name, pair.b.parent.name) for pair in pairs] == [METHODS] * 3
    assert [(pair.a.name, pair.b.name) for pair in pairs] == [(f"{number:05d}.mp4",) * 2 for number in range(3)]


def test_there_must_be_as_many_of_each(root):
    (root / METHODS[1] / "00002.mp4").unlink()
    with pytest.raises(ValueError, match=r"has 3 prompts, .*our_model has 3 clips, .*their_baseline has 2 clips"):
        read(root)
    (root / METHODS[0] / "00002.mp4").unlink()
    with pytest.raises(ValueError, match="has 3 prompts"):
        read(root)


@pytest.mark.parametrize("method", METHODS)
def test_sidecars_must_agree(root, method):
    for number in range(3):
        sidecar = root / method / f"{number:05d}.json"
        sidecar.write_text(json.dumps({"prompt": f"a thing of number {number}"}))
    assert len(read(root)) == 3
    sidecar.write_text(json.dumps({"seed": 1}))
    assert len(read(root)) == 3
    sidecar.write_text(json.dumps({"prompt": "a dog"}))
    with pytest.raises(ValueError, match=r"00002.mp4 was made for the prompt 'a dog', .* says 'a thing of number 2'"):
        read(root)
    sidecar.write_text("{")
    with pytest.raises(ValueError, match=r"00002\.json is no JSON"):
        read(root)


def test_no_clips(root, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no video"):
        read_pairs(root / METHODS[0], root / "nowhere", root / "prompts.txt")
