"""The device mesh: `data` divides the batch, `rows` the height of every frame; time stays whole on each device.

Rows rather than frames, because then the temporal layers need no communication, and the spatial convolutions only their
neighbours' edge rows.
"""

import os
from collections.abc import Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

AXES = ("data", "rows")
# What GKE tells the pods of a TPU slice, in the order in which JAX looks: all of them, separated by commas.
_HOSTS = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")


def initialize() -> None:
    """Connects the processes of a run on several hosts; call it before the first use of a device.

    Does nothing unless the environment says that there are several processes:

    - `JAX_COORDINATOR_ADDRESS=host:port` with `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`: exactly those. Each process has
      all accelerators of its machine, or those that `JAX_LOCAL_DEVICE_IDS=0,1` names;
    - several names in `TPU_WORKER_HOSTNAMES` or `TPU_PROCESS_ADDRESSES`, or `MEGASCALE_COORDINATOR_ADDRESS` (TPU slices
      on GKE), or `LUMIERE_DISTRIBUTED=1` (Cloud TPU VMs, SLURM, Open MPI, other jobs on Kubernetes): JAX finds the
      others by itself. Under SLURM and Open MPI each process then has one accelerator.

    Raises:
      ValueError: only a part of the first three variables is set, or JAX does not know where it runs.
    """
    if jax.distributed.is_initialized():
        return
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        _initialize_as_told(os.environ["JAX_COORDINATOR_ADDRESS"])
    elif (
        "," in next((os.environ[name] for name in _HOSTS if name in os.environ), "")
        or "MEGASCALE_COORDINATOR_ADDRESS" in os.environ
        or os.environ.get("LUMIERE_DISTRIBUTED") == "1"
    ):
        try:
            jax.distributed.initialize()
        except ValueError as error:
            raise ValueError(
                "the environment (LUMIERE_DISTRIBUTED=1, or GKE's variables) says that there are several processes, "
                f"but JAX does not find them: {error} It knows Cloud TPU with jax[tpu], SLURM's srun, Open MPI's mpirun"
                " and, with jax[k8s], Kubernetes. Anywhere else set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and "
                "JAX_PROCESS_ID"
            ) from error


def _initialize_as_told(coordinator: str) -> None:
    names = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    missing = [name for name in names if not os.environ.get(name, "").isdecimal()]
    if missing:
        raise ValueError(
            f"JAX_COORDINATOR_ADDRESS is set, but {' and '.join(missing)} is not a number: set all three, or none"
        )
    if not coordinator.rpartition(":")[2].isdecimal():
        raise ValueError(f"JAX_COORDINATOR_ADDRESS={coordinator} has no port: use HOST:PORT, e.g. {coordinator}:1234")
    count, index = (int(os.environ[name]) for name in names)
    # Without a look at the cluster: on a node of SLURM it would leave this process one of the machine's accelerators.
    jax.distributed.initialize(coordinator, count, index, cluster_detection_method="deactivate")


def make_mesh(data: int = -1, rows: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices of all hosts, with automatic (compiler-propagated) axes "data" and "rows".

    Where the devices come in slices (several TPU slices; several machines with GPUs), each slice is one part of "data",
    so that only the sums over the batch go through the slower network between them.

    Args:
      data: devices along the batch; -1 for as many as `rows` leaves.
      rows: devices along the height of a frame.
      devices: those of a slice to compile for (`tpu_slice.devices_of`); default: those that are there.

    Raises:
      ValueError: data · rows is not the number of devices, or `rows` reaches over slices.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if rows < 1 or count % rows:
        raise ValueError(f"rows={rows} does not divide the {count} devices: choose a divisor of {count}")
    if data == -1:
        data = count // rows
    if data * rows != count:
        raise ValueError(
            f"data={data} times rows={rows} is {data * rows}, but there are {count} devices: set data=-1 (here "
            f"{count // rows}), or choose another rows"
        )
    types = (AxisType.Auto,) * len(AXES)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if data % slices:
        raise ValueError(
            f"rows={rows} reaches over several of the {slices} slices of {count // slices} devices, whose network is "
            f"slow: choose a divisor of {count // slices}"
        )
    # jax.make_mesh refuses several slices, and 16 x 4 of a v6e:8x8, whose 8 chips along an axis must be divided for it.
    if slices == 1:
        in_order = mesh_utils.create_device_mesh((data, rows), devices, allow_split_physical_axes=True)
    else:
        in_order = mesh_utils.create_hybrid_device_mesh(
            (data // slices, rows), (slices, 1), devices, allow_split_physical_axes=True
        )
    return Mesh(in_order, AXES, axis_types=types)
