"""How many windows at once, and which tiles of a frame, fit into the memory that there is: asked of the compiler."""

import dataclasses
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import psutil
from flax import nnx
from jax.experimental import multihost_utils

from lumiere_jax.checkpoints.trained_run import Run
from lumiere_jax.diffusion.multidiffusion import Cut
from lumiere_jax.distributed import partitioning
from lumiere_jax.distributed.compiled_program import memory_that_is_missing
from lumiere_jax.pipelines.generation import Settings
from lumiere_jax.pipelines.window_programs import abstract_windows, denoise_windows

# Pixels of windows that keep a device busy: more of them at once need memory, and make nothing faster.
_BUSY = 2**20
# Of the sides of tiles that are tried where a whole frame does not fit.
_SMALLEST_TILE = 64


def free_memory(mesh: jax.sharding.Mesh) -> int:
    """Bytes that are free on the fullest device of a mesh; those of the machine, where its processors are devices."""
    statistics = [device.memory_stats() for device in mesh.local_devices]
    free = [found["bytes_limit"] - found["bytes_in_use"] for found in statistics if found]
    mebibytes = min(free or [psutil.virtual_memory().available]) >> 20
    if jax.process_count() > 1:
        mebibytes = int(multihost_utils.process_allgather(np.int32(mebibytes)).min())
    return mebibytes << 20


def settings_to_try(
    settings: Settings,
    clip: tuple[int, int, int],
    clips: int,
    stride: int,
    window_batch: int | None,
    mesh: jax.sharding.Mesh,
) -> Iterator[tuple[Settings, int]]:
    """Settings and numbers of windows at once, from those that need most memory to those that need least."""
    for tiled in _tilings(settings, clip, stride):
        cut = tiled.windows.of(clip)
        shape, count = cut.shape, clips * len(cut.corners)
        data, rows = mesh.shape["data"], mesh.shape["rows"]
        if shape[1] % rows:
            raise ValueError(
                f"windows of {shape[1]} rows cannot be divided over rows={rows} devices: choose another tile or "
                "height, or another --mesh_rows"
            )
        batch = min(_multiple(count, data), data * max(1, _BUSY // math.prod(shape)))
        if window_batch is not None:
            batch = _multiple(window_batch, data)
        while batch >= data:
            yield tiled, batch
            batch = 0 if window_batch is not None else batch // (2 * data) * data


def _tilings(settings: Settings, clip: tuple[int, int, int], stride: int) -> Iterator[Settings]:
    """The settings themselves; where they name no tile also with ever smaller ones."""
    windows = settings.windows
    if windows.height is not None:
        for name, pixels in zip(("tile", "tile_overlap"), windows.height, strict=True):
            if pixels % stride:
                raise ValueError(f"{name}={pixels} is no multiple of {stride}, which the network halves pixels by")
        yield settings
        return
    yield settings
    length, count = max(clip[1:]), 2
    while (tile := tiles_of(length, count, stride))[0] >= _SMALLEST_TILE:
        yield dataclasses.replace(settings, windows=dataclasses.replace(windows, height=tile, width=tile))
        count *= 2


def tiles_of(length: int, count: int, stride: int) -> tuple[int, int]:
    """(side, overlap) of `count` tiles along `length` pixels: the smallest that overlap by about an eighth."""
    overlap = _multiple(length / count / 8, stride)
    return _multiple((length + (count - 1) * overlap) / count, stride), overlap


def _multiple(number: float | int, of: int) -> int:
    return math.ceil(number / of) * of


def compile_windows(
    run: Run, settings: Settings, clip: tuple[int, int, int], window_batch: int
) -> tuple[jax.stages.Compiled | None, int]:
    """The program that denoises windows, and the bytes that a device needs for it beside the parameters."""
    parameters = run.parameters()
    everywhere = partitioning.replicated(run.mesh)
    key = partitioning.shapes_on(jax.eval_shape(lambda: jax.random.key(0)), everywhere)
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=everywhere)
    lowered = denoise_windows.lower(
        nnx.graphdef(run.model),
        parameters,
        key,
        scalar,
        scalar,
        *abstract_windows(run.config, settings, clip, window_batch, run.mesh),
        size=clip[1:],
        settings=settings,
        sharding=partitioning.batch_sharding(run.mesh),
    )
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        missing = memory_that_is_missing(str(error))
        if missing is None:
            raise
        return None, missing["needed"]
    sizes, leaves = program.memory_analysis(), jax.tree.leaves(parameters)
    held = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
    return program, sizes.temp_size_in_bytes + sizes.output_size_in_bytes + sizes.argument_size_in_bytes - held


def check_host_memory(run: Run, settings: Settings, cut: Cut, window_batch: int) -> None:
    """Raises a MemoryError if the host has no room for the clips: their state and, for some samplers, the last x0."""
    arrays = 2 if jax.eval_shape(settings.plan).previous is not None else 1
    needed = arrays * clips_together(cut, window_batch) * math.prod(cut.clip) * 3 * np.dtype(np.float32).itemsize
    available = psutil.virtual_memory().available
    if needed > available:
        raise MemoryError(
            f"{run.config.name}: {cut.clip[0]} frames of {cut.clip[2]}x{cut.clip[1]} pixels need {needed / 2**30:.2f} "
            f"GiB of the host's memory, of which {available / 2**30:.2f} are free: use fewer frames, or ddim"
        )


def clips_together(cut: Cut, window_batch: int) -> int:
    """Clips that fill a batch of windows."""
    return -(-window_batch // len(cut.corners))
