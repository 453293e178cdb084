"""TPU slices that need not be at hand: libtpu compiles for them on any Linux machine, without a chip.

Published facts of each chip are here too; its FLOP/s are among `model_flops.PEAK_FLOPS`. A JAX device of a v4 or v5p
is the whole chip: its two cores act as one.
"""

import dataclasses
import importlib.util
import os

import jax
from jax.experimental import topologies

INSTALL = "pip install 'lumiere-jax[tpu]' (in a checkout: pip install -e '.[tpu]'; Linux on x86-64)"


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip, as Google Cloud's page on its version gives it.

    The clock is not there. It follows from the FLOP/s that are, and what the chip's matrix units do in a cycle: 128x128
    multiply-adds each, of 4 units on v5e, 8 on v4 and v5p; v6e's, four times as large, count as 16.

    Attributes:
      memory_bandwidth: bytes/s of its HBM.
      interconnect_bandwidth: bytes/s that it sends to its neighbours: half of what is published, as that counts both
        directions.
      clock: Hz, of the cycles in which libtpu's compiler estimates.
    """

    memory_bandwidth: float
    interconnect_bandwidth: float
    clock: float


# By the name that a topology starts with.
CHIPS: dict[str, Chip] = {
    "v4": Chip(1228e9, 150e9, 1.05e9),
    "v5e": Chip(819e9, 100e9, 1.503e9),
    "v5p": Chip(2765e9, 300e9, 1.751e9),
    "v6e": Chip(1640e9, 224e9, 1.75e9),
}


# Cycles that a core takes for one of each that `compiled_program.work_of_kernel` counts, by the kernels' schedules
# (benchmarks/kernel_schedule.py, libtpu 0.0.42.1).
KERNEL_CYCLES: dict[str, dict[str, dict[str, float]]] = {
    "v4": {
        "splash_mha_fwd": {"weights": 0.00676},
        "splash_mha_dkv": {"weights": 0.01235},
    },
    "v5e": {
        "splash_mha_fwd": {"weights": 0.00447},
        "splash_mha_dkv": {"weights": 0.01301},
        "normalized_conv_forward": {"products": 1.345e-5, "values": 1.045e-3, "taps": 1.019e-3},
        "normalized_conv_gradient": {"products": 2.606e-5, "values": 3.125e-3, "taps": 1.811e-3},
    },
    "v5p": {
        "splash_mha_fwd": {"weights": 0.00441},
        "splash_mha_dkv": {"weights": 0.01308},
        "normalized_conv_forward": {"products": 1.266e-5, "values": 1.020e-3, "taps": 1.451e-3},
        "normalized_conv_gradient": {"products": 2.576e-5, "values": 3.695e-3, "taps": 1.995e-3},
    },
    "v6e": {
        "splash_mha_fwd": {"weights": 0.00299},
        "splash_mha_dkv": {"weights": 0.00600},
        "normalized_conv_forward": {"products": 3.346e-6, "values": 1.291e-3, "taps": 1.382e-3},
        "normalized_conv_gradient": {"products": 8.636e-6, "values": 3.814e-3, "taps": 1.438e-3},
    },
}
_CORES = {"v4": 2, "v5p": 2}  # of a chip, which share a kernel's work; others have one


def prepare() -> None:
    """Lets libtpu compile where there is no TPU; call it before the first use of a device.

    Raises:
      RuntimeError: libtpu is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise RuntimeError(f"libtpu, which compiles for TPUs, is not installed: {INSTALL}")
    # Do not ask Google Cloud's metadata server for a slice; several compiling processes may run side by side.
    for name, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-16"),  # whatever it is compiled for: libtpu complains if there is none
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
        ("TPU_MIN_LOG_LEVEL", "3"),
        ("TPU_STDERR_LOG_LEVEL", "3"),
    ):
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")


def chip_of(topology: str) -> Chip:
    """The chip of a topology such as "v5e:4x4".

    Raises:
      ValueError: another version, or no colon.
    """
    version, colon, _ = topology.partition(":")
    if not colon or version not in CHIPS:
        raise ValueError(
            f"topology={topology!r}: give a chip ({', '.join(CHIPS)}) and the slice's chips along each axis of its "
            "torus, such as v5e:4x4 or v5p:4x4x4"
        )
    return CHIPS[version]


def kernel_cycles(topology: str) -> dict[str, dict[str, float]]:
    """Of a chip, whose cores share a kernel's work: `KERNEL_CYCLES`."""
    version = topology.partition(":")[0]
    cores = _CORES.get(version, 1)
    return {
        name: {unit: cycles / cores for unit, cycles in units.items()} for name, units in KERNEL_CYCLES[version].items()
    }


def devices_of(topology: str) -> list[jax.Device]:
    """The devices of a slice, to compile for and not to run on.

    Args:
      topology: "v5e:4x4", "v5p:4x4x4", "v6e:8x8", ...

    Raises:
      ValueError: there is no such slice.
    """
    chip_of(topology)
    # Two cores of a v4 share their memory, as its programs use it.
    options = {"chip_config_name": "megacore"} if topology.startswith("v4") else {}
    try:
        return list(topologies.get_topology_desc(topology, platform="tpu", **options).devices)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"topology={topology!r}: {error}") from None
