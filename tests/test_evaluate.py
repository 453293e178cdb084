"""Evaluation end to end, with the smallest networks: what is made, measured, written, shown, and refused."""

import dataclasses
import functools
import hashlib
import json

import evaluation_inputs as inputs
import numpy as np
import pytest
from absl import flags
from browser import needs_browser, open_page
from marked_clips import said_in
from random_runs import random_run
from safetensors.numpy import save_file

from lumiere_jax import evaluate
from lumiere_jax.checkpoints.evaluation_networks import load_c3d, load_i3d
from lumiere_jax.data.video_io import write_mp4
from lumiere_jax.evaluation import material as materials
from lumiere_jax.evaluation import network_measures
from lumiere_jax.evaluation.network_measures import FVD, INCEPTION, NetworkMeasures
from lumiere_jax.evaluation.result import comparison, measured, protocol_of, read_result
from lumiere_jax.evaluation.result_table import table
from lumiere_jax.models.c3d import C3DConfig
from lumiere_jax.models.i3d import I3DConfig
from lumiere_jax.provenance.metadata import GENERATED


@pytest.fixture(scope="module")
def run():
    run = random_run()
    run.config.text.length = 96  # its tokenizer has seen too little for few tokens
    return run


def shapes(run, clips=3):
    clip = run.config.clip
    return materials.moving_shapes(
        clips=clips, seed=0, held_out=False, frames=clip.frames, fps=clip.fps, size=clip.size
    )


@pytest.fixture(scope="module")
def output(run, tmp_path_factory):
    directory = tmp_path_factory.mktemp("evaluation")
    evaluate.evaluate(run, [], shapes(run), directory, repeats=2, batch_size=2)
    return directory


def test_moving_shapes(output):
    result = read_result(output / "evaluation.json")
    assert list(result["results"]) == ["rendered", "generated"]
    protocol = result["protocol"]
    assert (protocol["name"], protocol["clips"], protocol["repeats"], protocol["size"]) == (
        "moving_shapes",
        3,
        2,
        [16, 16],
    )
    assert result["results"]["rendered"]["prompt following"]["colour"]["accuracy"] == 1.0
    assert result["results"]["generated"]["prompt following"]["colour"]["n"] == 6
    motions = {name: row["motion"]["trajectory error"]["mean"] for name, row in result["results"].items()}
    assert motions["rendered"] < 0.05 < motions["generated"]
    assert len(list(output.glob("clips/seed_[01]/base/*.mp4"))) == 6
    assert len((output / "prompts.txt").read_text().splitlines()) == 3
    _, facts, source = said_in(output / "generated.png")
    assert (facts["models"], source) == (result["models"], GENERATED)
    assert result["models"][0]["sha256"]


def test_nothing_is_generated_twice(run, output):
    before = {file: file.stat().st_mtime_ns for file in output.glob("clips/*/base/*")}
    evaluate.evaluate(run, [], shapes(run), output, repeats=2, batch_size=2)
    assert before == {file: file.stat().st_mtime_ns for file in output.glob("clips/*/base/*")}
    rows = comparison(
        {"once": read_result(output / "evaluation.json"), "twice": read_result(output / "evaluation.json")}
    )
    assert "twice: generated" in table(rows)


@needs_browser
def test_the_page(output):
    page = open_page(output / "report.html")
    assert page["console"] == []
    assert [width > 0 for _, width in page["media"]] == [True] * 6  # of each clip the clip and its X-T slice
    for said in ("stunet:test", "moving_shapes", "3 clips × 2 repeats", "trajectory error", "prompts_sha256"):
        assert said in page["text"]
    narrow = open_page(output / "report.html", width=360)
    assert narrow["content"] <= narrow["width"]


def test_too_few_frames_are_told(run, output):
    with pytest.raises(ValueError, match="3 frames: motion"):
        materials.moving_shapes(clips=1, seed=0, held_out=False, frames=3, fps=8.0, size=16)
    with pytest.raises(ValueError, match=r"frames=5: .* makes 4"):
        evaluate.evaluate(run, [], shapes(run), output, frames=5)


# ---------------------------------------------------------------- Clips that are there, and networks


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two kinds of clips, of which the generated ones have sidecars, and one a name that a pattern leaves out."""
    root, draw = tmp_path_factory.mktemp("folders"), np.random.default_rng(0)
    for kind, level in (("generated", 40), ("real", 200)):
        (root / kind).mkdir()
        for number in range(4):
            clip = np.clip(draw.normal(level, 40, (18, 6, 6, 3)), 0, 255).astype(np.uint8).repeat(4, 1).repeat(4, 2)
            write_mp4(root / kind / f"{number}.mp4", clip, 8, lossless=True)
            (root / kind / f"{number}.json").write_text(json.dumps({"prompt": f"clip {number}"}))
    return root


def folder(folders, reference="real", **choices):
    choices = {"pattern": "*.mp4", "clips": None, "frames": 16, "fps": None, "size": (24, 24)} | choices
    return materials.folder(folders / "generated", folders / reference if reference else None, **choices)


def test_clips_of_a_folder(folders):
    row, material = folder(folders)
    assert [clip.shape for clip in row.clips()] == [(16, 24, 24, 3)] * 4
    assert list(material.prompts) == [f"clip {number}" for number in range(4)]
    assert len(material.reference.repeats[0]) == 4
    assert material.reference_sha256
    assert material.reference_sha256 != folder(folders, "generated")[1].reference_sha256
    assert folder(folders, None)[1].reference is None
    (folders / "generated/3.json").rename(folders / "generated/3.txt")
    assert folder(folders)[1].prompts == []  # a score of three of four clips would be another
    (folders / "generated/3.txt").rename(folders / "generated/3.json")


NARROW, CLASSES = 16, 5


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Files of random weights, of narrow networks, in the layouts that are published."""
    root = tmp_path_factory.mktemp("weights")
    save_file(inputs.weights(inputs.i3d_shapes(NARROW, CLASSES)), root / "i3d.safetensors")
    np.savez(root / "c3d.npz", **inputs.weights(inputs.c3d_shapes(NARROW, (8, 8), CLASSES)))
    np.savez(root / "mean.npz", mean=np.full((3, 16, 128, 171), 100, np.float32))
    return {"i3d": root / "i3d.safetensors", "c3d": root / "c3d.npz", "c3d_mean": root / "mean.npz"}


def networks(monkeypatch, weights, **choices):
    narrow = C3DConfig(tuple(width // NARROW for width in inputs.C3D_WIDTHS.values()), (8, 8), CLASSES)
    i3d = functools.partial(load_i3d, config=I3DConfig(classes=CLASSES).narrowed(NARROW))
    monkeypatch.setattr(network_measures, "load_i3d", i3d)
    monkeypatch.setattr(network_measures, "load_c3d", functools.partial(load_c3d, config=narrow))
    return NetworkMeasures(**{name: str(file) for name, file in weights.items()}, **choices)


def test_networks_measure_clips_of_a_folder(monkeypatch, folders, weights, tmp_path):
    measures = networks(monkeypatch, weights, inception_splits=2)
    row, material = folder(folders)
    protocol = protocol_of(material, row, None, 16, None, (24, 24), measures)
    result = measured([row], material, protocol, tmp_path, measures, {})
    found = result["results"]["generated"]["networks"]
    of_itself = dataclasses.replace(material, reference=row)
    itself = measured([row], of_itself, protocol, tmp_path, measures, {})["results"]["generated"]["networks"]
    assert itself[FVD]["mean"] < 1e-6 * found[FVD]["mean"]
    assert found[FVD]["low"] is None  # one repeat tells no interval
    assert 1 <= found[INCEPTION]["mean"] <= CLASSES
    assert len(found[INCEPTION]["deviations over splits"]) == 1
    facts = read_result(tmp_path / "evaluation.json")["protocol"]["networks"]
    assert facts[FVD]["resize"] == "tf1_bilinear"
    assert facts[FVD]["sha256"] == hashlib.sha256(weights["i3d"].read_bytes()).hexdigest()
    assert facts[FVD]["is_published_file"] is False
    assert facts[INCEPTION]["splits"] == 2


def test_an_interval_needs_repeats(monkeypatch, folders, weights):
    only_i3d = networks(monkeypatch, {"i3d": weights["i3d"]})
    row, material = folder(folders)
    twice = dataclasses.replace(row, repeats=[row.repeats[0], row.repeats[0][:3]])
    found = only_i3d.measure(twice, material.reference, material.prompts)[FVD]
    assert len(found["values"]) == 2
    assert found["low"] < found["mean"] < found["high"]


def test_what_networks_cannot_measure(monkeypatch, weights):
    measures = networks(monkeypatch, weights)
    good = {"clips": 10, "frames": 16, "has_reference": True, "has_prompts": True}
    measures.check(**good)
    for change, said in (
        ({"has_reference": False}, "give --reference"),
        ({"frames": 8}, "I3D needs 9"),
        ({"frames": 17}, "C3D needs 16"),
        ({"clips": 9}, "9 clips in 10 parts"),
    ):
        with pytest.raises(ValueError, match=said):
            measures.check(**good | change)
    with pytest.raises(ValueError, match="--c3d and --c3d_mean"):
        NetworkMeasures(c3d=str(weights["c3d"]))
    with pytest.raises(FileNotFoundError, match=r"(?s)nowhere.*i3d_pretrained_400.*SHA-256"):
        NetworkMeasures(i3d="nowhere")


def test_ucf101_asks_for_each_class_in_turn(folders):
    material = materials.ucf101_zero_shot(folders / "real", clips=102, frames=16, size=(24, 24))
    assert (len(material.prompts), len(set(material.prompts)), material.prompts[101]) == (102, 101, material.prompts[0])
    assert len(material.reference.repeats[0]) == 4
    assert material.reference_fps == 25.0
    assert materials.ucf101_zero_shot(None, clips=3, frames=16, size=(24, 24)).reference is None


# ---------------------------------------------------------------- The command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "moving_shapes needs --checkpoint"),
        (["--checkpoint=x", "--generated=y"], "--generated=y says nothing with --protocol=moving_shapes"),
        (["--checkpoint=x", "--frames=8"], "--frames=8 says nothing"),
        (["--checkpoint=x", "--reference=y"], "--reference=y says nothing"),
        (["--protocol=folder", "--generated=y", "--output=z"], "folder needs --size"),
        (["--protocol=folder", "--checkpoint=x"], "--checkpoint=x says nothing with --protocol=folder"),
        (["--protocol=ucf101_zero_shot", "--checkpoint=x", "--held_out"], "--held_out says nothing"),
    ],
)
def test_flags_that_do_not_fit(monkeypatch, arguments, message):
    values = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", values)
    for name in ("string", "integer", "float", "bool", "enum", "multi_string"):
        define = functools.partial(getattr(flags, f"DEFINE_{name}"), flag_values=values)
        monkeypatch.setattr(flags, f"DEFINE_{name}", define)
    monkeypatch.setattr(evaluate, "FLAGS", values)
    evaluate.define_flags()
    values(["evaluate", *arguments])
    with pytest.raises(ValueError, match=message):
        evaluate.check_flags()
