"""The device mesh: `data` divides the batch, `rows` the height of every frame; time stays whole on each device.

Rows rather than frames, because then the temporal layers need no communication, and the spatial convolutions only their
neighbours' edge rows.
"""

import os
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh

AXES = ("data", "rows")


def initialize() -> None:
    """Connects the processes of a run on several hosts; call it before the first use of a device.

    Does nothing unless the environment says that there are several processes:

    - `JAX_COORDINATOR_ADDRESS=host:port` with `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`: exactly those;
    - several names in `TPU_WORKER_HOSTNAMES`, or `MEGASCALE_COORDINATOR_ADDRESS` (TPU slices on GKE), or
      `LUMIERE_DISTRIBUTED=1` (Cloud TPU VMs, SLURM, Open MPI): JAX finds the others by itself.

    Raises:
      ValueError: only a part of the first three variables is set.
    """
    if jax.distributed.is_initialized():
        return
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        names = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
        missing = [name for name in names if not os.environ.get(name, "").isdecimal()]
        if missing:
            raise ValueError(
                f"JAX_COORDINATOR_ADDRESS is set, but {' and '.join(missing)} is not a number: set all three, or none"
            )
        count, index = (int(os.environ[name]) for name in names)
        jax.distributed.initialize(os.environ["JAX_COORDINATOR_ADDRESS"], count, index)
    elif (
        "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
        or "MEGASCALE_COORDINATOR_ADDRESS" in os.environ
        or os.environ.get("LUMIERE_DISTRIBUTED") == "1"
    ):
        jax.distributed.initialize()


def make_mesh(data: int = -1, rows: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices of all hosts, with automatic (compiler-propagated) axes "data" and "rows".

    Args:
      data: devices along the batch; -1 for as many as `rows` leaves.
      rows: devices along the height of a frame.
      devices: those of a slice to compile for (`tpu_slice.devices_of`); default: those that are there.

    Raises:
      ValueError: data · rows is not the number of devices.
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
    return jax.make_mesh((data, rows), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)
