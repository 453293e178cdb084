"""How many cycles our kernels take on a TPU that is not at hand: their schedules, as libtpu writes them.

    python -m benchmarks.kernel_schedule [--topologies=v5e:2x2,v5p:2x2x1]

libtpu estimates the cycles of every instruction that XLA makes, and of a kernel it does not. But it can write down the
bundles of instructions that it schedules for it, of which a core issues one a cycle unless something makes it wait.
A kernel is one loop over blocks: its bundles, times the blocks, are its cycles. What is done for the first or the last
block alone counts for each block; waiting for memory does not count.

Attention takes so many cycles for each weight. A normalised convolution's are fitted, by least squares of relative
errors, to sizes of IF's networks (GELU; SiLU takes a sixth less): so many for each product, for each value and for each
value that a tap looks at (`compiled_program.work_of_kernel`). The results are `tpu_slice.KERNEL_CYCLES`.
"""

import os
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from absl import app, flags
from absl.flags import FLAGS

from lumiere_jax.distributed import partitioning, tpu_slice
from lumiere_jax.distributed.compiled_program import work_of_kernel
from lumiere_jax.distributed.mesh import make_mesh
from lumiere_jax.models import normalized_conv
from lumiere_jax.models.attention import FORWARD, Attended, block_sizes, splash, whole_blocks
from lumiere_jax.models.layers import Affine

# As in `if_l`: the pixels of a frame, and the text.
_FRAMES, _HEADS, _PIXELS, _TEXT, _WIDTH = 4, 10, 4096, 77, 64
# Channels and frames of the two finest levels of if_m and if_l, and of the finest of if_xl; pixels of a device.
_VIDEOS, _HEIGHT, _LINE = ((192, 80), (384, 40), (320, 80), (640, 40), (704, 80)), 8, 32
_BUNDLE = re.compile(r"^ *0x([0-9a-f]+)")


def attention_and_gradient(query: jax.Array, *sources: Attended) -> tuple:
    """The two kernels of attention."""
    out, gradient = jax.vjp(splash, query, *sources)
    return out, gradient(out)


def convolution_and_gradient(
    x: jax.Array, norm: Affine, kernel: jax.Array, bias: jax.Array, residual: jax.Array
) -> tuple:
    """The two kernels of a normalised convolution: with one tap that of a projection."""

    def convolution(*inputs: jax.Array) -> jax.Array | tuple:
        if len(kernel) > 1:
            return normalized_conv.normalized_conv(*inputs, act="gelu")
        x, norm, weights, bias = inputs
        return normalized_conv.add_normalized_product(residual, x, norm, weights[0], bias, act="gelu")

    out, gradient = jax.vjp(convolution, x, norm, kernel, bias)
    return out, gradient(out)


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


def fit(work: list[dict[str, int]], cycles: list[float]) -> tuple[dict[str, float], float]:
    """Cycles for one of each, with the smallest squares of relative errors.

    Args:
      work: what kernels do, from `work_of_kernel`, all with the same units.
      cycles: that each takes.

    Returns:
      cycles by unit, and the largest relative error.
    """
    relative = np.asarray([list(each.values()) for each in work]) / np.asarray(cycles)[:, None]
    of_unit, *_ = np.linalg.lstsq(relative, np.ones(len(cycles)))
    return dict(zip(work[0], of_unit.tolist(), strict=True)), float(np.abs(relative @ of_unit - 1.0).max())


def _bundles(mesh: jax.sharding.Mesh, function: Callable, *inputs: object) -> dict[str, int]:
    """Bundles of the loop of each kernel in a function, by the kernel's name."""
    jax.jit(partitioning.on_mesh(mesh, function)).lower(*inputs).compile()
    found = {}
    for path in pathlib.Path(_schedules.name).glob("*final_bundles.txt"):
        kernel = re.search(r"-(splash_mha_[a-z]+|normalized_conv_[a-z]+)", path.name)
        if kernel and "schedule-analysis" not in path.name:
            found[kernel[1]] = bundles_of_loop(path.read_text())
    for path in pathlib.Path(_schedules.name).iterdir():
        path.unlink()
    return found


def kernels_of(topology: str) -> Iterator[tuple[str, dict[str, int], float]]:
    """Name, work and cycles of each kernel that is measured, on one core of a slice."""
    device, *_ = tpu_slice.devices_of(topology)
    mesh = make_mesh(devices=[device])
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def array(*shape: int, dtype: jnp.dtype = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def tokens(count: int) -> jax.ShapeDtypeStruct:
        return array(1, _FRAMES, count, _HEADS, _WIDTH)

    sources = [Attended(tokens(count), tokens(count)) for count in (_PIXELS, _TEXT)]
    of_queries, _ = whole_blocks(_PIXELS, FORWARD.queries)
    of_keys, _ = whole_blocks(_PIXELS + _TEXT, FORWARD.keys)
    sizes = partitioning.on_mesh(mesh, block_sizes)(of_queries, of_keys)
    blocks = {
        "splash_mha_fwd": (sizes.block_q, sizes.block_kv),
        "splash_mha_dkv": (sizes.block_q_dkv, sizes.block_kv_dkv),
    }
    for name, bundles in _bundles(mesh, attention_and_gradient, tokens(_PIXELS), *sources).items():
        yield name, work_of_kernel(name, [(1, 1, _WIDTH, tokens) for tokens in blocks[name]]), bundles
    if device.device_kind in normalized_conv.TOO_LITTLE_FAST_MEMORY:
        return
    for channels, frames in _VIDEOS:
        pixels = normalized_conv.pixels_of_a_block(_HEIGHT * _LINE, frames)
        for taps in (1, 3):
            video, weights = array(1, frames, _HEIGHT, _LINE, channels), (taps, channels, channels)
            norm = Affine(*[array(1, frames, channels, dtype=jnp.float32)] * 2)
            inputs = (video, norm, array(*weights), array(channels), video)
            for name, bundles in _bundles(mesh, convolution_and_gradient, *inputs).items():
                yield name, work_of_kernel(name, [(1, pixels, frames, channels), weights]), bundles


def main(_argv: list[str]) -> None:
    """Entry point."""
    for topology in FLAGS.topologies:
        measured: dict[str, list] = {}
        for name, work, cycles in tqdm.tqdm(kernels_of(topology), topology, 2 + 4 * len(_VIDEOS)):
            measured.setdefault(name, []).append((work, cycles))
        for name, pairs in sorted(measured.items()):
            of_unit, error = fit(*map(list, zip(*pairs, strict=True)))
            cycles = ", ".join(f'"{unit}": {cycles:.4g}' for unit, cycles in of_unit.items())
            print(f"{topology} {name}: {{{cycles}}} cycles, to {100 * error:.0f} %")


if __name__ == "__main__":
    _schedules = tempfile.TemporaryDirectory()
    os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={_schedules.name} --xla_jf_dump_llo_text=true"
    tpu_slice.prepare()
    jax.config.update("jax_enable_compilation_cache", False)
    flags.DEFINE_list("topologies", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"], "One of each kind of chip.")
    app.run(main)
