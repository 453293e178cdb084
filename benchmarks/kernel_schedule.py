"""How many cycles the attention kernel takes on a TPU that is not at hand: its schedule, as libtpu writes it.

    python -m benchmarks.kernel_schedule [--topologies=v5e:2x2,v5p:2x2x1]

libtpu estimates the cycles of every instruction that XLA makes, and of a kernel it does not. But it can write down the
bundles of instructions that it schedules for it, of which a core issues one a cycle unless something makes it wait.
These kernels are one loop over blocks of attention weights: its bundles, over the weights of a block, are the cycles of
a weight (`tpu_slice.KERNEL_CYCLES`). What is done for the first or the last block of keys alone counts for each block;
waiting for memory does not count.
"""

import os
import pathlib
import re
import tempfile

import jax
import jax.numpy as jnp
from absl import app, flags
from absl.flags import FLAGS

from lumiere_jax.distributed import tpu_slice
from lumiere_jax.models.attention import BLOCK_OF_KEYS, BLOCK_OF_QUERIES, Attended, splash

# As in `if_l` on four rows: the queries of one device, and the keys of all pixels and of the text.
_FRAMES, _HEADS, _QUERIES, _PIXELS, _TEXT, _WIDTH = 4, 10, 1024, 4096, 77, 64
_BUNDLE = re.compile(r"^ *0x([0-9a-f]+)")


def compile_kernels(topology: str) -> None:
    """Compiles attention and its gradient, for one device of a slice."""
    device = jax.sharding.SingleDeviceSharding(tpu_slice.devices_of(topology)[0])

    def tokens(count: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, _FRAMES, count, _HEADS, _WIDTH), jnp.bfloat16, sharding=device)

    def attention_and_gradient(query: jax.Array, *sources: Attended) -> tuple:
        out, gradient = jax.vjp(splash, query, *sources)
        return out, gradient(out)

    sources = [Attended(tokens(count), tokens(count)) for count in (_PIXELS, _TEXT)]
    jax.jit(attention_and_gradient).lower(tokens(_QUERIES), *sources).compile()


def bundles_of_loop(schedule: str) -> int:
    """Bundles from the body of a schedule's loop to its exit.

    Raises:
      ValueError: there is not exactly one loop.
    """
    lines = schedule.splitlines()
    bodies = [int(_BUNDLE.match(line)[1], 16) for line in lines if re.match(r" *0x[0-9a-f]+ +LB:", line)]
    exits = [int(_BUNDLE.match(line)[1], 16) for line in lines if "loop exit test" in line]
    if len(bodies) != 1 or len(exits) != 1:
        raise ValueError(f"a schedule with {len(bodies)} loops and {len(exits)} exits, where one of each is read")
    return exits[0] - bodies[0]


def main(_argv: list[str]) -> None:
    """Entry point."""
    for topology in FLAGS.topologies:
        compile_kernels(topology)
        for path in sorted(pathlib.Path(_schedules.name).glob("*final_bundles.txt")):
            if (kernel := re.search(r"-(splash_mha_[a-z]+)_", path.name)) and "schedule-analysis" not in path.name:
                bundles = bundles_of_loop(path.read_text())
                cycles = bundles / (BLOCK_OF_QUERIES * BLOCK_OF_KEYS)
                print(f"{topology} {kernel[1]}: {bundles} bundles a block, {cycles:.5f} cycles a weight")
        for path in pathlib.Path(_schedules.name).iterdir():
            path.unlink()


if __name__ == "__main__":
    _schedules = tempfile.TemporaryDirectory()
    os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={_schedules.name} --xla_jf_dump_llo_text=true"
    tpu_slice.prepare()
    jax.config.update("jax_enable_compilation_cache", False)
    flags.DEFINE_list("topologies", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"], "One of each kind of chip.")
    app.run(main)
