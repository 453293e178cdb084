import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from processes import run_processes

from lumiere_jax.checkpoints.checkpointing import CheckpointManager, tree_hash
from lumiere_jax.distributed.mesh import initialize, make_mesh


@pytest.fixture
def initialized_with(monkeypatch):
    """The arguments of every call of jax.distributed.initialize, which is not made."""
    for name in ("JAX_COORDINATOR_ADDRESS", "TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    for name in ("MEGASCALE_COORDINATOR_ADDRESS", "LUMIERE_DISTRIBUTED"):
        monkeypatch.delenv(name, raising=False)
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *arguments, **_options: calls.append(arguments))
    return calls


@pytest.mark.parametrize(
    ("environment", "calls"),
    [
        ({}, []),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, []),
        ({"LUMIERE_DISTRIBUTED": "0"}, []),
        ({"TPU_WORKER_HOSTNAMES": "worker-0,worker-1"}, [()]),
        ({"TPU_PROCESS_ADDRESSES": "worker-0:8476,worker-0:8477", "TPU_WORKER_HOSTNAMES": "worker-0"}, [()]),
        ({"TPU_PROCESS_ADDRESSES": "localhost:8476", "TPU_WORKER_HOSTNAMES": "localhost"}, []),
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


def test_coordinator_without_a_port(monkeypatch, initialized_with):
    """As XPK sets it for GPUs, beside JAX_COORDINATOR_PORT."""
    told = {"JAX_COORDINATOR_ADDRESS": "job-0-0.job", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"JAX_COORDINATOR_ADDRESS=job-0-0\.job has no port"):
        initialize()
    assert initialized_with == []


# ------------------------------------------------------------------------------------ what JAX makes of it

# The environment that each kind of cluster gives to the second of two processes. What each variable holds: JAX's
# clusters/, Kubernetes's and SLURM's documentation.
CLUSTERS = {
    "plain": (
        {"JAX_COORDINATOR_ADDRESS": "host:1234", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"},
        ("host:1234", 2, 1, None),
    ),
    "plain, on a node of SLURM": (
        {
            "JAX_COORDINATOR_ADDRESS": "host:1234",
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": "1",
            "SLURM_JOB_ID": "7",
            "SLURM_STEP_NODELIST": "node[3-4]",
            "SLURM_NTASKS": "16",
            "SLURM_PROCID": "9",
            "SLURM_LOCALID": "1",
        },
        ("host:1234", 2, 1, None),
    ),
    "SLURM": (
        {
            "LUMIERE_DISTRIBUTED": "1",
            "SLURM_JOB_ID": "7",
            "SLURM_STEP_NODELIST": "node[3-4]",
            "SLURM_NTASKS": "16",
            "SLURM_PROCID": "9",
            "SLURM_LOCALID": "1",
        },
        ("node3:61447", 16, 9, [1]),
    ),
    "GKE": (
        {"TPU_WORKER_HOSTNAMES": "localhost,job-0-1.job", "TPU_WORKER_ID": "1"},
        ("localhost:8482", 2, 1, None),
    ),
    "GKE, two slices": (
        {
            "TPU_WORKER_HOSTNAMES": "job-1-0.job,job-1-1.job",
            "TPU_WORKER_ID": "1",
            "MEGASCALE_COORDINATOR_ADDRESS": "localhost:8080",
            "MEGASCALE_NUM_SLICES": "2",
            "MEGASCALE_SLICE_ID": "1",
        },
        ("localhost:8482", 4, 3, None),
    ),
    "Cloud TPU": ({"LUMIERE_DISTRIBUTED": "1"}, ("localhost:8482", 2, 1, None)),
}
CLOUD_TPU = {"agent-worker-number": "1", "worker-network-endpoints": "a:0:localhost,b:1:10.0.0.2", "tpu-env": ""}


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_each_kind_of_cluster_is_found(cluster, monkeypatch):
    """JAX's own detection runs; the connection alone is not made."""
    from jax._src import distributed
    from jax._src.clusters import cloud_tpu_cluster
    from jax._src.clusters import cluster as clusters

    is_tpu = "TPU" in cluster or "GKE" in cluster
    for module in (cloud_tpu_cluster, clusters):
        monkeypatch.setattr(module, "running_in_cloud_tpu_vm", is_tpu)
    monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", lambda key: (CLOUD_TPU[key], 200))
    if is_tpu:
        monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)  # JAX sets it where it sees no TPU
    told = []

    def connect(_self, *told_by_us, **options):
        coordinator, count, index, local, method, timeout, *_ = told_by_us
        if method != "deactivate":
            found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
                coordinator, count, index, local, method, timeout
            )
            coordinator, count, index, local = found
        told.append((coordinator, count, index, local))

    monkeypatch.setattr(distributed.State, "initialize", connect)
    monkeypatch.setattr(distributed.xla_bridge, "backends_are_initialized", lambda: False)
    environment, expected = CLUSTERS[cluster]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    initialize()
    assert told == [expected]


def test_nothing_to_be_found(monkeypatch):
    from jax._src import distributed

    monkeypatch.setattr(distributed.xla_bridge, "backends_are_initialized", lambda: False)
    monkeypatch.setenv("LUMIERE_DISTRIBUTED", "1")
    with pytest.raises(ValueError, match=r"coordinator_address should be defined.*Anywhere else set JAX_COORDINATOR"):
        initialize()
    assert not jax.distributed.is_initialized()


# ------------------------------------------------------------------------------------ the mesh over slices


@dataclasses.dataclass(frozen=True)
class Device:
    id: int
    slice_index: int
    process_index: int
    platform: str = "gpu"
    device_kind: str = "H100"


@pytest.mark.parametrize(("rows", "expected"), [(1, [[0], [1], [2], [3]]), (2, [[0, 1], [2, 3]])])
def test_mesh_over_machines_with_gpus(monkeypatch, rows, expected):
    """JAX 0.11 and later call each machine a slice, and `jax.make_mesh` refuses several."""
    devices = [Device(3, 1, 1), Device(1, 0, 0), Device(2, 1, 1), Device(0, 0, 0)]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    mesh = make_mesh(rows=rows)
    assert [[device.id for device in line] for line in mesh.devices] == expected
    assert mesh.axis_names == ("data", "rows")
    assert mesh.axis_types == (AxisType.Auto, AxisType.Auto)


def test_rows_stay_in_a_slice(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [Device(i, i // 2, i // 2) for i in range(4)])
    with pytest.raises(ValueError, match=r"rows=4 reaches over several of the 2 slices of 2 devices.*divisor of 2"):
        make_mesh(rows=4)


# ------------------------------------------------------------------------------------ two real processes


def test_two_processes(tmp_path):
    """One device's checkpoint goes on on four devices of two processes, and theirs on one device."""
    tree = {"divided": jnp.arange(16.0).reshape(4, 4), "same": jnp.arange(3)}
    with CheckpointManager(tmp_path) as manager:
        manager.save(1, tree)
    for answers in run_processes(pathlib.Path(__file__).with_name("one_of_two_processes.py"), str(tmp_path)):
        error, *others = answers
        assert error.startswith("error rows=4 reaches over several")
        assert others == ["means [10.0, 11.0]", f"hash {tree_hash(tree)}"]
    step, restored = CheckpointManager(tmp_path).restore(tree)
    assert step == 2
    jax.tree.map(lambda leaf, original: np.testing.assert_array_equal(leaf, -original), restored, tree)
