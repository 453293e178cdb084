"""Compiles a config's program for a TPU slice that is not at hand: does it fit, and how long would a step take?

    python -m lumiere_jax.compile_for_tpu --config=configs/stunet.py:if_l --topology=v5e:4x4
    python -m lumiere_jax.compile_for_tpu --config=configs/stunet.py:if_l --topology=v5e:4x4 --program=sample
    python -m lumiere_jax.compile_for_tpu --config=configs/stunet.py:small --topology=v5e:2x2 --plan

The functions that train and sample are compiled by libtpu, on any Linux machine and without a TPU; no weights are made.
The config says the batch, the mesh, what is sharded and what is computed again, as it does for training:
`--config.training.batch_size=16 --config.mesh.rows=4 --config.fsdp --config.remat.block=full`. Full-size programs take
minutes to compile, and gigabytes of memory. What the numbers mean: docs/performance.md.
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterator

import jax
import ml_collections
import tqdm
from absl import app, flags, logging
from absl.flags import FLAGS
from ml_collections import config_flags

from lumiere_jax.abstract_program import PROGRAMS
from lumiere_jax.distributed import tpu_slice
from lumiere_jax.distributed.tpu_report import Report, compile_and_report
from lumiere_jax.models import rematerialization


def candidates(
    config: ml_collections.ConfigDict, chips: int, program: str
) -> Iterator[list[ml_collections.ConfigDict]]:
    """The configs that a plan compiles: a list for each mesh that divides batch and height, least recomputed first.

    Sampling has no backward pass, and for each mesh one config.
    """
    kinds = dict.fromkeys(("block", "spatial", "temporal"), "none")
    coarsest = config.clip.size // 2 ** (len(config.image_model.unet.block_out_channels) - 1)
    for rows in (rows for rows in range(1, chips + 1) if chips % rows == 0):
        parts = config.training.batch_size % (chips // rows * config.training.accumulation_steps) == 0
        if parts and coarsest % rows == 0:
            same_mesh = []
            for policies in rematerialization.CHOICES if program == "train" else ({},):
                candidate = ml_collections.ConfigDict(config.to_dict())
                candidate.mesh = {"data": -1, "rows": rows}
                candidate.remat.update(kinds | policies)
                same_mesh.append(candidate)
            yield same_mesh


def plan(config: ml_collections.ConfigDict, topology: str, program: str, effort: float = 0.0) -> list[Report]:
    """Compiles for each mesh with ever more recomputation until it fits; the fastest that fits comes first.

    Raises:
      ValueError: no mesh of the slice divides the batch.
    """
    chips = len(tpu_slice.devices_of(topology))
    reports, meshes = [], list(candidates(config, chips, program))
    if not meshes:
        raise ValueError(
            f"training.batch_size={config.training.batch_size}: no mesh of the {chips} chips of {topology} divides it "
            f"and the height of the coarsest level. Make it a multiple, or a divisor, of {chips}"
        )
    with tqdm.tqdm(meshes, desc="meshes", leave=False) as bar:
        for same_mesh in bar:
            for candidate in same_mesh:
                bar.set_postfix(rows=candidate.mesh.rows, remat=candidate.remat.block)
                report = compile_and_report(candidate, topology, program, effort)
                reports.append(report)
                tqdm.tqdm.write(report.line())
                if report.fits:
                    break
    return sorted(reports, key=lambda report: (not report.fits, report.seconds_a_step or 0.0))


def define_flags() -> None:
    """The command line; defined by the entry point alone, so that several can be imported side by side."""
    config_flags.DEFINE_config_file("config", None, "What would be trained: configs/FILE.py[:VARIANT], inflated.")
    flags.DEFINE_string("topology", None, "The slice: v5e:4x4, v5p:4x4x4, v6e:8x8, ...")
    flags.DEFINE_enum("program", "train", list(PROGRAMS), "A training step, or all of a batch's sampling.")
    flags.DEFINE_bool("plan", False, "Try meshes and rematerialisation policies, and recommend one.")
    flags.DEFINE_float(
        "effort",
        0.0,
        "The compiler's, for a fast program. -1: for a quick look at memory and communication.",
        -1.0,
        1.0,
    )
    flags.DEFINE_string(
        "save_program",
        None,
        "A file for the compiled program, if it fits: the slice then need not compile it (train --program).",
    )
    flags.DEFINE_string("output", None, "A JSON file for the report; default: tpu_CONFIG_TOPOLOGY_PROGRAM.json.")


def main(_argv: list[str]) -> None:
    """Entry point."""
    logging.set_verbosity(logging.ERROR)
    config, topology = FLAGS.config, FLAGS.topology
    if FLAGS.plan and FLAGS.save_program:
        sys.exit("error: --save_program: --plan compiles several programs; save the one that it recommends")
    name = f"tpu_{config.name}_{topology}_{FLAGS.program}".replace(":", "_").replace("/", "_")
    output = pathlib.Path(FLAGS.output or f"{name}.json")
    try:
        if FLAGS.plan:
            reports = plan(config, topology, FLAGS.program, FLAGS.effort)
        else:
            reports = [compile_and_report(config, topology, FLAGS.program, FLAGS.effort, FLAGS.save_program)]
    except (RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")
    found = [dataclasses.asdict(report) for report in reports]
    output.write_text(json.dumps(found if FLAGS.plan else found[0], indent=2) + "\n")
    print(reports[0].text())
    if FLAGS.plan and reports[0].fits:
        print(f"recommended: {reports[0].flags()}")
    print(output)
    if not reports[0].fits:
        sys.exit(1)


if __name__ == "__main__":
    try:
        tpu_slice.prepare()
    except RuntimeError as missing:
        sys.exit(f"error: {missing}")
    jax.config.update("jax_enable_compilation_cache", False)  # it cannot hold programs for other devices' topologies
    define_flags()
    flags.mark_flags_as_required(["config", "topology"])
    app.run(main)
