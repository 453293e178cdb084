"""What there is to say of a program that was compiled for a TPU slice: memory, work, communication, time."""

import dataclasses
import importlib.metadata
import pathlib
import time
from typing import Any

import jax
import ml_collections

from lumiere_jax.abstract_program import PROGRAMS, needed_flops
from lumiere_jax.distributed import tpu_slice
from lumiere_jax.distributed.compiled_program import Cost, cost_of, memory_that_is_missing
from lumiere_jax.distributed.mesh import make_mesh
from lumiere_jax.distributed.model_flops import peak_flops
from lumiere_jax.distributed.saved_program import save_program
from lumiere_jax.train_config import check_batches

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Report:
    """One program on one slice; bytes, FLOPs and seconds are those of one chip and one call, unless it says otherwise.

    Attributes:
      effort: of the compiler; below 0 the program is slower than a real run's.
      fits: whether libtpu found room for it; where not, all after `memory` is None.
      memory: bytes. If it fits `arguments`, `temporaries` and their sum `peak`; else `needed`, `available`, `missing`.
      flops: of the compiled program, with what it computes again. A loop's body counts once, a kernel's work not.
      needed_flops: of the model, for the whole batch and all chips: nothing computed again.
      seconds: by kind of work, estimated by the compiler; "kernel" by the schedule (`tpu_slice.KERNEL_CYCLES`).
      sent, collectives: bytes that a chip sends, and how many calls, by kind of collective.
      roofline: seconds that the chip's peaks allow at best for the program's FLOPs, bytes and what it sends.
      seconds_a_step: sum of `seconds`: without waiting for other chips.
      seconds_with_communication: and all that is sent on top of it, as if nothing else were done meanwhile.
      utilisation: `needed_flops` over what all chips could do in `seconds_a_step`.
      chip_hours, days: of the config's training; None for sampling.
    """

    config: str
    program: str
    topology: str
    chips: int
    batch_size: int
    mesh: dict[str, int]
    fsdp: bool
    remat: dict[str, str | int]
    versions: dict[str, str]
    effort: float
    compile_seconds: float
    fits: bool
    memory: dict[str, int]
    flops: float | None = None
    needed_flops: float | None = None
    bytes_accessed: float | None = None
    seconds: dict[str, float] | None = None
    sent: dict[str, float] | None = None
    collectives: dict[str, int] | None = None
    roofline: dict[str, float] | None = None
    seconds_a_step: float | None = None
    seconds_with_communication: float | None = None
    utilisation: float | None = None
    chip_hours: float | None = None
    days: float | None = None

    def flags(self) -> str:
        """The flags that give this mesh and these policies."""
        remat = " ".join(f"--config.remat.{kind}={policy}" for kind, policy in self.remat.items())
        return f"--config.mesh.rows={self.mesh['rows']} --config.fsdp={self.fsdp} {remat}"

    def line(self) -> str:
        """One line: where it was compiled for, and the outcome."""
        where = f"{self.topology}, data {self.mesh['data']} x rows {self.mesh['rows']}, remat {self.remat['block']}"
        if not self.fits:
            return f"{where}: does not fit, {self.memory['missing'] / _GIB:.2f} GiB a chip are missing"
        return f"{where}: fits, {self.seconds_a_step:.3f} s a step, {100 * self.utilisation:.0f} % of the peak"

    def text(self) -> str:
        """All of it, for people."""
        head = f"{self.config}, {self.program}, {self.batch_size} clips on {self.chips} chips of {self.line()}"
        if not self.fits:
            needed, available = (self.memory[name] / _GIB for name in ("needed", "available"))
            return f"{head}\n  needed {needed:.2f} GiB a chip, available {available:.2f} GiB"
        memory = ", ".join(f"{name} {size / _GIB:.2f}" for name, size in self.memory.items())
        lines = [
            head,
            *([f"  compiled with effort {self.effort}: a real run is faster"] if self.effort < 0 else []),
            f"  memory, GiB a chip: {memory}",
            f"  needed: {self.needed_flops / 1e12:.0f} TFLOP in all; computed, without kernels: "
            f"{self.flops / 1e12:.1f} a chip",
            "  seconds, by the compiler's estimate: "
            + ", ".join(f"{kind} {seconds:.3f}" for kind, seconds in self.seconds.items()),
            "  sent, GB a chip: "
            + (", ".join(f"{k} {self.sent[k] / 1e9:.2f} in {n}" for k, n in self.collectives.items()) or "nothing"),
            "  at the chip's peaks, seconds: " + ", ".join(f"{k} {s:.3f}" for k, s in self.roofline.items()),
            f"  a step: {self.seconds_a_step:.3f} s, with all communication {self.seconds_with_communication:.3f} s",
        ]
        if self.days is not None:
            lines.append(f"  the config's training: {self.days:.1f} days, {self.chip_hours:,.0f} chip-hours")
        return "\n".join(lines)


def compile_and_report(
    config: ml_collections.ConfigDict,
    topology: str,
    program: str,
    effort: float = 0.0,
    saved_to: str | pathlib.Path | None = None,
) -> Report:
    """Compiles for a slice, and reads the report off the program.

    Args:
      config: of an inflated model.
      topology: of `tpu_slice.devices_of`.
      program: one of `abstract_program.PROGRAMS`.
      effort: of the compiler to make a fast program, from -1 to 1; 0 is its default, and what a real run gets.
      saved_to: a file for the compiled program, if it fits.

    Raises:
      ValueError: no such slice; a mesh or a batch that it does not divide; a config that is not
        inflated, or cannot be trained.
    """
    if "temporal" not in config:
        raise ValueError(
            f"{config.name} has no temporal layers: give a config that inflates an image model, such as "
            "configs/stunet.py or configs/ssr.py"
        )
    chip, devices = tpu_slice.chip_of(topology), tpu_slice.devices_of(topology)
    mesh = make_mesh(**config.mesh, devices=devices)
    check_batches(config, mesh)
    lowered = PROGRAMS[program](config, mesh)
    started = time.monotonic()
    try:
        compiled, memory = lowered.compile({"exec_time_optimization_effort": effort} if effort else None), None
    except jax.errors.JaxRuntimeError as error:
        memory = memory_that_is_missing(str(error))
        if memory is None:
            raise
    report = Report(
        config=config.name,
        program=program,
        topology=topology,
        chips=len(devices),
        batch_size=config.training.batch_size,
        mesh=dict(mesh.shape),
        fsdp=config.fsdp,
        remat=config.remat.to_dict(),
        versions={name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "libtpu")},
        effort=effort,
        compile_seconds=round(time.monotonic() - started, 1),
        fits=memory is None,
        memory=memory or {},
    )
    if memory is not None:
        return report
    if saved_to:
        save_program(saved_to, lowered, compiled, devices)
    cost = cost_of(compiled.as_text(), tpu_slice.kernel_cycles(topology), chip.clock / chip.memory_bandwidth)
    return dataclasses.replace(
        report, **_read(compiled, cost, config, program, chip, peak_flops(devices), len(devices))
    )


def _read(
    compiled: jax.stages.Compiled,
    cost: Cost,
    config: ml_collections.ConfigDict,
    program: str,
    chip: tpu_slice.Chip,
    peak: float,
    chips: int,
) -> dict[str, Any]:
    sizes, counted = compiled.memory_analysis(), compiled.cost_analysis()
    # Donated arguments are written over.
    arguments = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    seconds = {kind: cycles / chip.clock for kind, cycles in sorted(cost.cycles.items())}
    step, sending = sum(seconds.values()), sum(cost.sent.values()) / chip.interconnect_bandwidth
    needed = needed_flops(config, program)
    training = {}
    if program == "train":
        hours = step * config.training.steps / 3600
        training = {"chip_hours": hours * chips, "days": hours / 24}
    return {
        "memory": {
            "arguments": arguments,
            "temporaries": sizes.temp_size_in_bytes,
            "peak": arguments + sizes.temp_size_in_bytes,
        },
        "flops": counted["flops"],
        "needed_flops": needed,
        "bytes_accessed": counted["bytes accessed"],
        "seconds": seconds,
        "sent": dict(cost.sent),
        "collectives": dict(cost.collectives),
        "roofline": {
            "compute": counted["flops"] / (peak / chips),
            "memory": counted["bytes accessed"] / chip.memory_bandwidth,
            "communication": sending,
        },
        "seconds_a_step": step,
        "seconds_with_communication": step + sending,
        "utilisation": needed / (peak * step),
        **training,
    }
