"""Programs for TPU slices, compiled by libtpu on this machine: skipped by name where it is not installed."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from configs import stunet
from lumiere_jax import compile_for_tpu
from lumiere_jax.abstract_program import needed_flops
from lumiere_jax.distributed import tpu_slice
from lumiere_jax.distributed.compiled_program import memory_that_is_missing

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason=f"libtpu is not installed: {tpu_slice.INSTALL}"
)
# Two of if_l's four levels at their full widths and heights, with a layer each; a short clip.
REDUCED = (
    "--config=configs/stunet.py:if_l",
    "--config.image_model.unet.block_out_channels=(320, 640)",
    "--config.image_model.unet.cross_attention=(False, True)",
    "--config.image_model.unet.layers_per_block=(1, 1)",
    "--config.temporal.strides=(2,)",
    "--config.training.batch_size=2",
    "--config.mesh.rows=2",
    "--topology=v5e:2x2",
    "--effort=-1",  # compiles in a fraction of the time; what the program would take is then not what it could
)


def compiled(tmp_path, *flags):
    """The command's exit status, what it printed, and its report."""
    output = tmp_path / "report.json"
    process = subprocess.run(
        [sys.executable, "-m", "lumiere_jax.compile_for_tpu", f"--output={output}", *flags],
        cwd=pathlib.Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    report = json.loads(output.read_text()) if output.exists() else None
    return process.returncode, process.stdout + process.stderr, report


@needs_libtpu
def test_a_training_step_of_full_width(tmp_path):
    program = tmp_path / "program"
    status, said, report = compiled(tmp_path, *REDUCED, "--config.clip.frames=8", f"--save_program={program}")
    assert status == 0, said
    with open(program, "rb") as file:
        assert json.loads(file.readline())["device"] == "TPU v5 lite"
    assert program.stat().st_size > 1e6
    assert "fits" in said
    assert report["fits"]
    assert report["mesh"] == {"data": 2, "rows": 2}
    memory = report["memory"]
    assert memory["peak"] == memory["arguments"] + memory["temporaries"]
    # Trained parameters and their average in float32, frozen ones in bfloat16, divided over two or four chips.
    assert 0.05 < memory["arguments"] / 2**30 < 0.5
    assert memory["temporaries"] > memory["arguments"]
    # XLA counts no kernels. Of three inflation blocks at the finest level (at the other, 4 frames are not whole tiles)
    # they have a temporal convolution and a projection, each with the gradients of its input and of its weights.
    in_kernels = 3 * 3 * 2 * (3 + 1) * 320**2 * (2 * 8 * 128 * 128)
    # Four chips compute what the model needs, and a little of it again; attention's kernels are not counted here, too.
    assert 0.85 < (4 * report["flops"] + in_kernels) / report["needed_flops"] < 1.2
    # Neighbours' rows, gathered parameters, sums of gradients.
    assert {"collective-permute", "all-gather", "all-reduce"} <= report["sent"].keys()
    assert set(report["seconds"]) == {"matrix", "elementwise", "reduce", "copy", "kernel"}
    assert 0 < report["utilisation"] < 1
    assert report["seconds_a_step"] >= report["roofline"]["compute"]
    steps = stunet.get_config("if_l").training.steps
    assert report["chip_hours"] == pytest.approx(4 * report["seconds_a_step"] * steps / 3600)


@needs_libtpu
def test_a_slice_that_is_too_small(tmp_path):
    status, said, report = compiled(tmp_path, *REDUCED, "--config.clip.frames=80", "--config.training.batch_size=64")
    assert status == 1, said
    assert "Traceback" not in said
    assert f"does not fit, {report['memory']['missing'] / 2**30:.2f} GiB a chip are missing" in said
    assert report["memory"]["available"] == pytest.approx(15.75 * 2**30, rel=1e-3)
    assert report["memory"]["missing"] == report["memory"]["needed"] - report["memory"]["available"] > 0


@needs_libtpu
def test_sampling(tmp_path):
    status, said, report = compiled(
        tmp_path, "--config=configs/stunet.py:test", "--topology=v5p:2x2x1", "--program=sample", "--effort=-1",
        "--config.training.batch_size=4", "--config.sampling.steps=3",
    )  # fmt: skip
    assert status == 0, said
    assert report["program"] == "sample"
    assert report["days"] is None
    # Guided: two evaluations a step.
    one = needed_flops(_with_steps(1), "sample")
    assert report["needed_flops"] == pytest.approx(3 * one)


def _with_steps(steps):
    config = stunet.get_config("test")
    config.training.batch_size, config.sampling.steps = 4, steps
    return config


# The chips of a slice in the order of its mesh, by their places in the network.
COORDINATES = """
from lumiere_jax.distributed import mesh, tpu_slice
tpu_slice.prepare()
for topology, rows in (("v5e:4x4", 4), ("v5e:16x16", 8), ("v6e:8x8", 4), ("v5p:4x4x4", 4)):
    devices = mesh.make_mesh(rows=rows, devices=tpu_slice.devices_of(topology)).devices
    print([[list(chip.coords) for chip in row] for row in devices])
"""


@needs_libtpu
def test_a_frames_rows_lie_on_neighbouring_chips():
    """Also where an axis of the network has more chips than a frame's rows: jax.make_mesh refuses 16 x 4 on v6e:8x8."""
    process = subprocess.run([sys.executable, "-c", COORDINATES], capture_output=True, text=True, check=True)
    slices = list(map(json.loads, process.stdout.splitlines()))
    assert len(slices) == 4
    for places in slices:
        np.testing.assert_array_equal(np.abs(np.diff(places, axis=1)).sum(-1), 1)


@needs_libtpu
def test_a_slice_that_there_is_not(tmp_path):
    status, said, _ = compiled(tmp_path, "--config=configs/stunet.py:test", "--topology=v5e:3x5")
    assert status == 1
    assert "error: topology='v5e:3x5':" in said
    assert "not divisible" in said
    assert "Traceback" not in said


@needs_libtpu
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--config=configs/text_to_image.py:test",), "text_to_image:test has no temporal layers"),
        (("--config=configs/stunet.py:test", "--config.mesh.rows=3"), "rows=3 does not divide the 4 devices"),
        (("--config=configs/stunet.py:test", "--config.mesh.rows=4", "--config.clip.size=10"), "mesh.rows=4 does not"),
    ],
)
def test_what_cannot_be_compiled(tmp_path, flags, message):
    status, said, _ = compiled(tmp_path, *flags, "--topology=v5e:2x2")
    assert status == 1
    assert f"error: {message}" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("topology", ["4x4", "v9:4x4", ""])
def test_a_chip_that_is_not_known(topology):
    with pytest.raises(ValueError, match=r"give a chip \(v4, v5e, v5p, v6e\) and the slice's chips"):
        tpu_slice.chip_of(topology)


def test_without_libtpu(monkeypatch):
    monkeypatch.setattr(tpu_slice.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"libtpu, .*, is not installed: pip install .*\[tpu\]"):
        tpu_slice.prepare()


@pytest.mark.parametrize(
    ("message", "missing"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 19.50G of 15.75G hbm. Exceeded", 3.75),
        ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (16.50G) exceeds "
         "available HBM (15.75G).", 0.75),
        ("RESOURCE_EXHAUSTED: no more threads", None),
        ("INTERNAL: Used 19.50G of 15.75G hbm", None),
    ],
)  # fmt: skip
def test_what_is_missing(message, missing):
    memory = memory_that_is_missing(message)
    assert (memory and memory["missing"] / 2**30) == missing


def test_a_plan_tries_meshes_that_divide_batch_and_height():
    config = stunet.get_config("if_l")
    config.training.batch_size = 4
    meshes = list(compile_for_tpu.candidates(config, 16, "train"))
    # 4 clips: at most 4 chips along data; 16 rows at the coarsest level: at most 16 chips along rows.
    assert [same_mesh[0].mesh.rows for same_mesh in meshes] == [4, 8, 16]
    assert [candidate.remat.block for candidate in meshes[0]] == ["none", "products", "none", "none", "full"]
    assert [candidate.remat.spatial for candidate in meshes[0]] == ["none", "none", "products", "full", "none"]
    assert [len(same_mesh) for same_mesh in compile_for_tpu.candidates(config, 16, "sample")] == [1, 1, 1]
    config.training.batch_size = 3
    assert list(compile_for_tpu.candidates(config, 64, "train")) == []
