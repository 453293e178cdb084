"""What lies where on the mesh: the batch over `data`, the height of videos over `rows`, parameters everywhere.

Or, fully sharded (FSDP), each parameter is divided over an axis of the mesh, gathered where a layer needs it, and its
gradient summed to where it lies.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

VIDEO_NDIM = 5  # [batch, frames, height, width, channels]


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh, ndim: int = VIDEO_NDIM) -> NamedSharding:
    """The first axis over `data`; of a video (5 axes, [batch, frames, height, width, channels]) the height over `rows`.

    Args:
      mesh: from `make_mesh`.
      ndim: the number of axes of the array: 5 is a video, 3 text embeddings, 1 a label or time for every clip.

    Raises:
      ValueError: an array without axes has no batch.
    """
    if ndim < 1:
        raise ValueError("ndim=0: a scalar has no batch axis, use replicated(mesh)")
    return NamedSharding(mesh, P("data", None, "rows") if ndim == VIDEO_NDIM else P("data"))


def shard_batch(mesh: Mesh, host_batch: Any) -> Any:
    """Places this process's part of the batch on its devices.

    Args:
      mesh: from `make_mesh`.
      host_batch: a pytree of numpy arrays with the batch first: on each process its own equal share of the clips, whole
        frames.

    Returns:
      The same tree of global arrays: the batch axis is as long as all processes' shares together.

    Raises:
      ValueError: a batch or a height that the mesh does not divide; a frame whose rows lie on several processes.
    """
    if mesh.local_mesh.shape["rows"] != mesh.shape["rows"]:
        raise ValueError(
            f"rows={mesh.shape['rows']} reaches over several processes, which each load whole frames: choose rows to "
            f"divide the {jax.local_device_count()} devices of one process"
        )
    return jax.tree.map_with_path(lambda path, leaf: _shard_leaf(mesh, jax.tree_util.keystr(path), leaf), host_batch)


def _shard_leaf(mesh: Mesh, name: str, leaf: Any) -> jax.Array:
    leaf = np.asarray(leaf)
    sharding = batch_sharding(mesh, leaf.ndim)
    batch = leaf.shape[0] * jax.process_count()
    if batch % mesh.shape["data"]:
        raise ValueError(
            f"batch{name}: {batch} clips cannot be divided over data={mesh.shape['data']} devices: make the batch size "
            f"a multiple of {mesh.shape['data']}, or raise rows"
        )
    if leaf.ndim == VIDEO_NDIM and leaf.shape[2] % mesh.shape["rows"]:
        raise ValueError(
            f"batch{name}: height {leaf.shape[2]} cannot be divided over rows={mesh.shape['rows']}: choose a divisor"
        )
    return jax.make_array_from_process_local_data(sharding, leaf, (batch, *leaf.shape[1:]))


# Of a divided axis a device keeps a multiple of what TPUs lay out together: 128 along the last axis, 8 along the one
# before it. Smaller parts are padded, and XLA then sends zeros with them (measured: 12 rows of 768, over 64 devices).
_ALIGNMENT = {-1: 128, -2: 8}


def parameter_shardings(mesh: Mesh, state: Any, *, fsdp: bool = False) -> Any:
    """A tree like `state` (arrays or `jax.ShapeDtypeStruct`) with each leaf's sharding.

    Args:
      mesh: from `make_mesh`.
      state: parameters, or whatever has their shapes: averages, an optimiser's slots.
      fsdp: divides a leaf's input channels (the axis before the last), or else its output channels (the last), over as
        many devices as the alignment allows: those of both axes of the mesh, of `data`, or of `rows`. A leaf that
        nothing fits stays whole on every device, as all do without it.
    """
    return jax.tree.map(lambda leaf: NamedSharding(mesh, _divided(mesh, leaf.shape) if fsdp else P()), state)


def _divided(mesh: Mesh, shape: tuple[int, ...]) -> P:
    if len(shape) < 2:
        return P()  # biases, scales and counts are few bytes
    choices = [(mesh.shape[name], name) for name in mesh.axis_names]
    for devices, names in [(mesh.size, mesh.axis_names), *sorted(choices, reverse=True)]:
        for axis, aligned in sorted(_ALIGNMENT.items()):
            if devices > 1 and shape[axis] % (devices * aligned) == 0:
                spec: list[Any] = [None] * len(shape)
                spec[axis] = names
                return P(*spec)
    return P()


def shapes_on(tree: Any, shardings: Any) -> Any:
    """Shapes, types and places: what a checkpoint is read into, and a program compiled for.

    Args:
      tree: of arrays, or of `jax.ShapeDtypeStruct`.
      shardings: a tree like it.

    Returns:
      The same tree of `jax.ShapeDtypeStruct`, each with its sharding.
    """
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree, shardings
    )


def on_mesh(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, traced so that the layers in it know of the mesh: they gather fully sharded parameters themselves."""

    @functools.wraps(function)
    def traced(*arguments: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return traced


def platform() -> str:
    """JAX's name of what a function that is traced `on_mesh` is compiled for, maybe ahead of time ("tpu", "cpu").

    Elsewhere of what JAX computes on here.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return jax.default_backend() if mesh.empty else mesh.abstract_device.platform


def device_kind() -> str:
    """As `platform`, of the device: "TPU v5 lite", "cpu"."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.devices()[0].device_kind if mesh.empty else mesh.abstract_device.device_kind


def gathered(parameter: jax.Array) -> jax.Array:
    """A parameter whole on every device, in a function that is traced `on_mesh`; elsewhere as it is.

    Left to itself, the compiler may divide a video's channels as a layer's parameters are divided, and then sends the
    video around, which is larger.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return parameter
    return jax.lax.with_sharding_constraint(parameter, P())


def on_rows(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(divided, of_clips, shared)` on each device, for what the compiler cannot divide by itself (a kernel).

    Args:
      function: of a pytree of arrays `[batch, frames, pixels, ...]`, of which a device gets those of its clips and
        rows; of a pytree of arrays with the batch first, which it gets for its clips; and of a pytree of arrays that
        each device gets whole. Returns a pytree of arrays that are divided like the first ones. It may call
        `exchanged`.

    Returns:
      a function of the three pytrees. Where it is not traced `on_mesh`, one device has everything.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return function
    rows = P("data", None, "rows")
    return jax.shard_map(function, in_specs=(rows, P("data"), P()), out_specs=rows, check_vma=False)


def devices_of_rows() -> int:
    """Over how many devices a frame's rows are divided, in a function that is traced `on_mesh`; elsewhere 1."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape["rows"]


def exchanged(array: jax.Array) -> jax.Array:
    """In a function `on_rows`: each device gives the others what is theirs on the first axis, and gets what is its own.

    Args:
      array: `[devices, ...]`, in the order of a frame's rows.

    Returns:
      the same shape: from whom it is. To exchange that goes back.
    """
    # With one device alone: libtpu 0.0.42 ended the process where it compiled whole if_l with effort -1.
    return array if len(array) == 1 else jax.lax.all_to_all(array, "rows", 0, 0, tiled=True)


def place(mesh: Mesh, state: Any, *, fsdp: bool = False) -> Any:
    """Parameters or training state on the devices of all processes; each process gives the same values.

    Args:
      mesh, state, fsdp: as for `parameter_shardings`.
    """

    def movable(leaf: Any) -> Any:
        # Several processes take what lies on a device of one of them by way of its host.
        is_local = isinstance(leaf, jax.Array) and leaf.is_fully_addressable
        return np.asarray(leaf) if is_local and jax.process_count() > 1 else leaf

    return jax.device_put(jax.tree.map(movable, state), parameter_shardings(mesh, state, fsdp=fsdp))


def divide_batch(mesh: Mesh, batch: Any) -> Any:
    """Places a batch that every process holds whole: the first axis over `data`, copies over `rows`.

    Args:
      mesh: from `make_mesh`; its rows may lie on several processes.
      batch: a pytree of numpy arrays with the batch first, the same on all processes; `data` divides it.

    Returns:
      The same tree of global arrays.
    """
    sharding = batch_sharding(mesh, 1)
    return jax.tree.map(lambda leaf: jax.make_array_from_callback(leaf.shape, sharding, leaf.__getitem__), batch)


@functools.partial(jax.jit, static_argnames="sharding")
def _frame_everywhere(videos: jax.Array, frame: int, sharding: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(jax.lax.dynamic_index_in_dim(videos, frame, 1, keepdims=False), sharding)


def videos_to_hosts(mesh: Mesh, videos: jax.Array) -> np.ndarray:
    """Videos that lie on all processes' devices, whole on each process; all processes call it.

    They go frame by frame, as a device may not have the memory for all clips at full height.
    """
    if videos.is_fully_addressable:
        return np.asarray(videos)
    frames = (_frame_everywhere(videos, frame, replicated(mesh)) for frame in range(videos.shape[1]))
    return np.stack([np.asarray(frame) for frame in frames], axis=1)
