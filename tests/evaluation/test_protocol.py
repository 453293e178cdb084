import dataclasses
import json

import pytest

from lumiere_jax.evaluation.protocol import Protocol, sha256_of_lines
from lumiere_jax.evaluation.result import comparison, read_result
from lumiere_jax.evaluation.result_table import cell, table

PROTOCOL = Protocol(
    name="folder",
    clips=4,
    repeats=1,
    seed=None,
    prompts="",
    prompts_sha256="",
    frames=16,
    fps=None,
    size=(64, 64),
    reference="",
    reference_clips=0,
    reference_fps=None,
    reference_sha256="",
    networks={"Fréchet video distance": {"network": "I3D", "resize": "tf1_bilinear"}},
)


def written(directory, name, protocol, mean):
    motion = {"adjacent frame error": {"mean": mean, "low": mean - 0.01, "high": mean + 0.01, "n": 4}}
    file = directory / name
    file.write_text(
        json.dumps({"protocol": dataclasses.asdict(protocol), "results": {"generated": {"motion": motion}}})
    )
    return read_result(file)


def test_results_of_one_protocol_are_compared(tmp_path):
    results = {name: written(tmp_path, name, PROTOCOL, mean) for name, mean in (("a", 0.1), ("b", 0.2))}
    lines = table(comparison(results)).splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["a:", "generated"], ["b:", "generated"]]
    assert lines[2].endswith("0.200 (0.190 to 0.210)")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"frames": 17}, "frames: 16 / 17"),
        ({"size": (128, 64)}, r"size: \[64, 64\] / \[128, 64\]"),
        (
            {"networks": {"Fréchet video distance": {"network": "I3D", "resize": "half_pixel"}}},
            "resize: 'tf1_bilinear'",
        ),
        ({"networks": {}}, "networks.Fréchet video distance: {"),
        ({"seed": 1, "prompts_sha256": sha256_of_lines(["a"])}, r"(?s)seed: None / 1.*prompts_sha256"),
    ],
)
def test_results_of_different_protocols_are_not(tmp_path, change, said):
    other = dataclasses.replace(PROTOCOL, **change)
    results = {"a": written(tmp_path, "a", PROTOCOL, 0.1), "b": written(tmp_path, "b", other, 0.2)}
    with pytest.raises(ValueError, match=said):
        comparison(results)


def test_what_is_no_result(tmp_path):
    for text in ("[1]", "no json", '{"protocol": {}}'):
        (tmp_path / "file").write_text(text)
        with pytest.raises(ValueError, match="is no result of `evaluate`"):
            read_result(tmp_path / "file")


def test_cells():
    assert cell({"accuracy": 0.5, "low": 0.25, "high": 0.75, "n": 4}) == "0.50 (0.25 to 0.75)"
    assert cell({"mean": 332.49, "low": 320.0, "high": 344.0}) == "332 (320 to 344)"
    assert cell({"mean": 37.54, "low": 36.1, "high": 38.9}) == "37.5 (36.1 to 38.9)"
    assert cell({"mean": 332.49, "low": None, "high": None}) == "332.5"
    assert cell({"mean": None, "low": None, "high": None}) == "not measured"
