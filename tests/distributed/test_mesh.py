import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from processes import run_processes

from lumiere_jax.checkpoints.checkpointing import CheckpointManager, tree_hash
from lumiere_jax.distributed.mesh import initialize


@pytest.fixture
def initialized_with(monkeypatch):
    """The arguments of every call of jax.distributed.initialize, which is not made."""
    for name in ("JAX_COORDINATOR_ADDRESS", "TPU_WORKER_HOSTNAMES", "MEGASCALE_COORDINATOR_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("LUMIERE_DISTRIBUTED", raising=False)
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *arguments: calls.append(arguments))
    return calls


@pytest.mark.parametrize(
    ("environment", "calls"),
    [
        ({}, []),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, []),
        ({"LUMIERE_DISTRIBUTED": "0"}, []),
        ({"TPU_WORKER_HOSTNAMES": "worker-0,worker-1"}, [()]),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "host"}, [()]),
        ({"LUMIERE_DISTRIBUTED": "1"}, [()]),
        (
            {"JAX_COORDINATOR_ADDRESS": "host:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "0"},
            [("host:1234", 4, 0)],
        ),
    ],
)
def test_several_processes_only_if_the_environment_says_so(monkeypatch, initialized_with, environment, calls):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    initialize()
    assert initialized_with == calls


def test_coordinator_without_the_rest(monkeypatch, initialized_with):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "host:1234")
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    monkeypatch.delenv("JAX_NUM_PROCESSES", raising=False)
    with pytest.raises(ValueError, match="JAX_NUM_PROCESSES is not a number"):
        initialize()
    assert initialized_with == []


def test_two_processes(tmp_path):
    """One device's checkpoint goes on on four devices of two processes, and theirs on one device."""
    tree = {"divided": jnp.arange(16.0).reshape(4, 4), "same": jnp.arange(3)}
    with CheckpointManager(tmp_path) as manager:
        manager.save(1, tree)
    for output in run_processes(pathlib.Path(__file__).with_name("one_of_two_processes.py"), str(tmp_path)):
        lines = dict(line.split(" ", 1) for line in output.splitlines())
        assert lines["error"].startswith("rows=4 reaches over several processes")
        assert lines["means"] == "[10.0, 11.0]"
        assert lines["hash"] == tree_hash(tree)
    step, restored = CheckpointManager(tmp_path).restore(tree)
    assert step == 2
    jax.tree.map(lambda leaf, original: np.testing.assert_array_equal(leaf, -original), restored, tree)
