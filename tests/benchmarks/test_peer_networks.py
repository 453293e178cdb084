"""The benchmarks against PyTorch: who competes does the same, takes turns, and what is missing is said."""

import contextlib
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import networks_in_jax, peer_networks, peer_report
from benchmarks.machine import machine
from benchmarks.peer_networks import IMAGE_PEER, LUMIERE, MOTION, OURS, PEERS, UNET_3D, Competitor, Prepared, Row, Task
from lumiere_jax.abstract_model import abstract_model
from lumiere_jax.models import parameter_partition

ROOT = pathlib.Path(__file__).parent.parent.parent
IMAGE = Task("image", "gradient", "test", frames=2, size=8, clips=1, dtype="float32", device="cpu", threads=1)
VIDEO = Task("video", "training_step", "test", frames=4, size=8, clips=1, dtype="float32", device="cpu", threads=1)
PEER = Row("image", "forward", IMAGE_PEER, "eager", seconds=(2.0, 3.0, 8.0), ours=(2.0, 2.0, 2.0), memory=5_000_000)


def test_ratios_are_those_of_neighbouring_turns():
    assert PEER.ratios == (1.0, 1.5, 4.0)
    assert Row("image", "forward", OURS, "jit", seconds=(1.0,)).ratios == ()


def test_the_table_names_what_was_not_measured():
    ours = Row("image", "forward", OURS, "jit", seconds=(0.002, 0.004, 0.003), memory=1_000_000, parameters=1234)
    missing = Row("video", "forward", LUMIERE, "", reason="not installed")
    failed = Row("video", "forward", MOTION, "eager", reason="ValueError: a | b")
    lines = peer_report.table([ours, PEER, missing, failed]).splitlines()
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert f"| image forward | {OURS} | jit | 3.0 |  |  | 1 | not known | 1,234 |" in lines[2]
    assert f"| image forward | {IMAGE_PEER} | eager | 3000.0 | 1.50 x | 1.00–4.00 | 5 |" in lines[3]
    assert f"| {LUMIERE} |  | not installed |" in lines[4]
    assert f"| {MOTION} | eager | ValueError: a \\| b |" in lines[5]
    assert len(peer_report.plot([ours, PEER, missing]).axes[0].patches) == 1


def test_the_goal_counts_the_peers_best_mode():
    slower = Row("image", "forward", IMAGE_PEER, "compile", seconds=(0.5, 0.6), ours=(1.0, 1.0))
    (found,) = peer_report.goals([PEER, slower])
    assert f"image forward, {IMAGE_PEER}: **missed**, 0.55 x its best mode (compile)" in found
    (found,) = peer_report.goals([PEER])
    assert "reached, 1.50 x its best mode (eager)" in found
    assert peer_report.goals([Row("video", "forward", LUMIERE, "", reason="not installed")]) == []


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ({"output": np.array([1.0, -1.001])}, "output differs by 1.0e-03"),
        ({"output": np.array([1.0, np.nan])}, "output differs by nan"),
        ({"output": np.ones((2, 1))}, r"output is \(2, 1\), of ours \(2,\)"),
        ({"output": np.array([1.0, -1.0]), "loss": np.ones(())}, r"gives \['loss', 'output'\]"),
    ],
)
def test_another_network_is_an_error(theirs, message):
    ours = {"output": np.array([1.0, -1.0])}
    peer_networks.check_same(Competitor(IMAGE_PEER, "eager"), ours, {"output": np.array([1.0, -1.0001])}, 2e-4)
    with pytest.raises(ValueError, match=message):
        peer_networks.check_same(Competitor(IMAGE_PEER, "eager"), ours, theirs, 2e-4)


def fake_processes(monkeypatch, results=None, cannot=()):
    """Processes that compute nothing, and the order of their turns."""
    turns = []

    class FakeProcess:
        def __init__(self, task, competitor):
            self.name = competitor.name
            output = {"output": np.ones(2)} if results is None or self.name == OURS else results
            self.prepared = Prepared(output, 3, 2, 1.0, 0.01, None)

        def turn(self, seconds):
            turns.append(self.name)
            return 1.0 if self.name == OURS else 2.0

        def run(self, function, *arguments):
            assert function is peer_networks.peak_memory
            return 100

    @contextlib.contextmanager
    def started(task, competitor):
        if competitor.name in cannot:
            raise peer_networks.CannotRun("RuntimeError: shapes")
        yield FakeProcess(task, competitor)

    monkeypatch.setattr(peer_networks, "_started", started)
    monkeypatch.setattr(peer_networks, "installed", lambda name, network: name != UNET_3D)
    return turns


def test_they_take_turns(monkeypatch):
    turns = fake_processes(monkeypatch, cannot=[MOTION])
    ours, lumiere, motion, three_d = peer_networks.measure(VIDEO, ["eager"], rounds=2, seconds=0, say=lambda _: None)
    assert turns[-4:] == [OURS, LUMIERE, OURS, LUMIERE]
    assert (ours.name, ours.memory, ours.parameters, ours.trained) == (OURS, 100, 3, 2)
    assert lumiere.ratios == (2.0, 2.0)
    assert (motion.reason, three_d.reason) == ("RuntimeError: shapes", "not installed")


def test_a_peer_that_computes_something_else_ends_the_benchmark(monkeypatch):
    fake_processes(monkeypatch, results={"output": np.ones(2) * 1.01})
    with pytest.raises(ValueError, match=r"UNet2DConditionModel \(eager\) does not compute what lumiere_jax does"):
        peer_networks.measure(IMAGE, ["eager"], rounds=1, seconds=0, say=lambda _: None)


def test_threads_that_cannot_be_had():
    with pytest.raises(ValueError, match="threads=100000, but there are"):
        peer_networks.check_threads(100_000)


def test_memory_is_that_of_this_process():
    if peer_networks.memory("VmRSS") is None:
        pytest.skip("needs /proc")
    before = peer_networks.memory("VmHWM")
    array = np.ones(1 << 27, np.uint8)
    assert peer_networks.memory("VmRSS") > array.nbytes
    assert peer_networks.memory("VmHWM") >= max(before, array.nbytes)


def test_our_training_step_trains_the_temporal_parameters():
    program = networks_in_jax.build(VIDEO, Competitor(OURS))
    _, trained, frozen = parameter_partition.split(abstract_model(VIDEO.get_config()))
    assert program.trained == parameter_partition.count(trained)
    assert program.parameters == program.trained + parameter_partition.count(frozen)
    program.call()  # uses its state up, and has the next
    assert np.isfinite(program.results()["loss"])


def test_our_gradient():
    results = networks_in_jax.build(IMAGE, Competitor(OURS)).results()
    assert results["output"].shape == (2, 1, 8, 8, 3)
    expected = np.square(results["output"] - IMAGE.inputs()["target"]).mean()
    np.testing.assert_allclose(results["loss"], expected, rtol=1e-5)
    assert results["gradient norm"] > 0


def test_machine():
    facts = machine(["numpy", "no-such-library"])
    assert facts["versions"] == {"numpy": np.__version__, "no-such-library": "not installed"}
    assert facts["processor"]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["sampling", "training_step"])
def test_the_command(tmp_path, command):
    """With peers: the image networks compute the same, or it ends with an error. Without: it names them."""
    arguments = ["--quick", "--threads=1", f"--output={tmp_path}"]
    process = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{command}", *arguments],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    rows = [Row(**row) for row in json.loads((tmp_path / f"{command}.json").read_text())["rows"]]
    assert [row.name for row in rows] == [OURS, *PEERS["image"], OURS, *PEERS["video"]]
    assert (tmp_path / f"{command}.md").read_text() in process.stdout
    assert (tmp_path / f"{command}.png").stat().st_size > 0
    for row in rows:
        is_missing = row.name != OURS and not peer_networks.installed(row.name, row.network)
        assert row.reason == ("not installed" if is_missing else "")
        assert is_missing or (min(row.seconds) > 0 and row.parameters > 0)
        assert not is_missing or f"{row.name}, " in process.stdout or f"{row.name} (" in process.stdout
    image, same, video, lumiere, *_ = rows
    if not same.reason:
        assert (image.parameters, image.trained) == (same.parameters, same.trained)
    if command == "training_step":
        assert all(0 < row.trained < row.parameters for row in rows if row.network == "video" and not row.reason)
        if not lumiere.reason:  # around the same image network
            assert lumiere.parameters - lumiere.trained == video.parameters - video.trained == image.parameters
