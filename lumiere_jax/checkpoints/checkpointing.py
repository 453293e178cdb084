"""Saving and restoring: all of Orbax is in this file.

A tree is any pytree of arrays: nested dicts (`nnx.to_pure_dict(state)`), lists, optax's named tuples. On disk it is
flat: every leaf under the name of its path, `down/0/kernel`. The containers are not stored: an empty optax state costs
nothing, and restoring into an abstract tree gives exactly that tree's structure.
"""

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Sharding, SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

from lumiere_jax.checkpoints.ocdbt_files import check_files
from lumiere_jax.text.storage import StoredArray

NO_SPACE_LEFT = (
    "no space is left on the disk. Make room there, then start the same command again: it continues from the newest "
    "complete checkpoint"
)
_TREE = "state"  # the directory in a checkpoint that holds its tree
_LISTED = 8  # leaves named in a mismatch message
_SHOWN = 1000  # characters of another library's message


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, incomplete, damaged or of another architecture; the message names the remedy."""


class CheckpointManager:
    """The checkpoints of one run: `directory/STEP`, the newest `keep` of them.

    Reading neither creates nor removes anything, so a running training can be read from another process. Only one run
    may write into a directory. On several hosts, every process calls every method.
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int = 3):
        """Opens `directory`, which the first `save` creates."""
        if keep < 1:
            raise ValueError(f"keep={keep}: at least the newest checkpoint is kept, set keep >= 1")
        self._directory = epath.Path(directory).expanduser().absolute()
        self._keep = keep
        self._writer: ocp.training.Checkpointer | None = None

    def save(self, step: int, tree: Any, metadata: Mapping[str, Any] | None = None) -> None:
        """Saves `tree` in the background; returns as soon as its buffers may be donated or changed.

        A save that is still running is waited for, never skipped. Whatever goes wrong in the background is raised by
        the next `save`, `wait` or `close`.

        Args:
          step: later than every step in the directory.
          tree: see the module's docstring.
          metadata: JSON values to keep with the step, see `metadata`.

        Raises:
          CheckpointError: `step` is not later than the newest one, or the last save went wrong.
          ValueError: a leaf or a name that would not come back as it is.
        """
        leaves = _savable(tree)
        self.wait()
        newest = self.latest_step()
        if step < 0 or (newest is not None and step <= newest):
            raise CheckpointError(
                f"cannot save step {step} into {self._directory}: its newest checkpoint is step {newest}. Continue "
                "from that step, remove the later checkpoints, or choose another directory."
            )
        with self._writing():
            self._open_writer().save_async(
                step, leaves, checkpointable_name=_TREE, force=True, custom_metadata=dict(metadata or {})
            )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            reason = NO_SPACE_LEFT if is_no_space_left(error) else str(error)[:_SHOWN]
            newest = self.latest_step()
            raise CheckpointError(
                f"{self._directory}: a checkpoint could not be written: {reason} (the newest complete one is "
                f"{'of step ' + str(newest) if newest is not None else 'none'})"
            ) from error

    def _open_writer(self) -> ocp.training.Checkpointer:
        if self._writer is None:
            self._writer = ocp.training.Checkpointer(
                self._directory,
                preservation_policy=ocp.training.preservation_policies.LatestN(self._keep),
                cleanup_tmp_directories=True,  # what a killed run left half-written
            )
        return self._writer

    def latest_step(self) -> int | None:
        """The newest complete step; None if there is none (or no directory). Half-written steps do not count."""
        if not self._directory.exists():
            return None
        names = [path.name for path in self._directory.iterdir()]
        steps = sorted((int(name) for name in names if name.isdecimal()), reverse=True)
        return next((step for step in steps if _is_complete(self._directory / str(step))), None)

    def restore(self, abstract_tree: Any, step: int | None = None, *, partial: bool = False) -> tuple[int, Any]:
        """Restores bit by bit, onto the shardings of `abstract_tree`: any number of devices and hosts.

        Args:
          abstract_tree: the structure to restore, of `jax.ShapeDtypeStruct` (with shardings) or arrays.
          step: None for the newest complete one.
          partial: accept a checkpoint with more leaves than `abstract_tree` has, and leave those out.

        Returns:
          The step, and the tree.

        Raises:
          CheckpointError: no such (complete) step, another architecture, a damaged file.
        """
        step = self._resolve(step)
        return step, load_tree(self._directory / str(step), abstract_tree, partial=partial)

    def metadata(self, step: int | None = None) -> dict[str, Any]:
        """The `metadata` saved with `step` (None: the newest complete one)."""
        return dict(_read_metadata(self._directory / str(self._resolve(step))).custom_metadata or {})

    def _resolve(self, step: int | None) -> int:
        self.wait()
        if not self._directory.exists():
            raise CheckpointError(f"{self._directory} does not exist: no checkpoint was ever saved there")
        if step is None:
            step = self.latest_step()
        if step is None:
            raise CheckpointError(
                f"{self._directory} holds no complete checkpoint: the run was stopped before its first one was "
                "written. Start it again."
            )
        return step

    def wait(self) -> None:
        """Waits until the last `save` is on disk."""
        if self._writer is not None:
            with self._writing():
                self._writer.wait()

    def close(self) -> None:
        """Waits for the last `save` and gives up the directory."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with self._writing():
                writer.close()

    def __enter__(self) -> "CheckpointManager":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def is_no_space_left(error: BaseException) -> bool:
    """Whether a file system was full, or a quota used up; Orbax tells it in words alone."""
    numbers = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in numbers or any(os.strerror(number) in str(error) for number in numbers)


def save_tree(path: str | os.PathLike, tree: Any, *, overwrite: bool = False) -> None:
    """Saves a tree on its own (the frozen backbone, say); `path` appears only when it is complete.

    Raises:
      CheckpointError: `path` exists, and `overwrite` is not set.
      ValueError: a leaf or a name that would not come back as it is.
    """
    path = epath.Path(path).expanduser().absolute()
    leaves = _savable(tree)
    if path.exists():
        if not overwrite:
            raise CheckpointError(f"{path} exists: remove it, choose another path, or pass overwrite=True")
        if not _is_complete(path):
            raise CheckpointError(f"{path} is no checkpoint, it will not be overwritten: choose another path")
        ocp.delete(path)
    ocp.save(path, leaves, checkpointable_name=_TREE)


def load_tree(
    path: str | os.PathLike, abstract_tree: Any = None, sharding: Sharding | None = None, *, partial: bool = False
) -> Any:
    """Loads what `save_tree` wrote, or one step of a `CheckpointManager`.

    Args:
      path: the checkpoint's directory.
      abstract_tree: as in `CheckpointManager.restore`. None loads everything as nested dicts, where list positions
        are int keys (as in `nnx.to_pure_dict`).
      sharding: for the leaves of `abstract_tree` that name none. Without it a single process takes its first device.
      partial: accept leaves on disk that `abstract_tree` does not have, and leave them out.

    Raises:
      CheckpointError: missing, half-written or damaged, or not the tree that `abstract_tree` describes.
    """
    path = epath.Path(path).expanduser().absolute()
    stored = {name: jax.ShapeDtypeStruct(m.shape, m.dtype) for name, m in _read_metadata(path).metadata.items()}
    if abstract_tree is None:
        wanted = stored
    else:
        wanted = named_leaves(abstract_tree)
        _check_same_leaves(path, wanted, stored, partial)
    context = ocp.Context()
    context.pytree.loading.partial_load = partial
    targets = {name: _with_sharding(name, leaf, sharding) for name, leaf in wanted.items()}
    try:
        with context:
            loaded = ocp.load(path, targets, checkpointable_name=_TREE)
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    if abstract_tree is None:
        return nested(loaded)
    return jax.tree.unflatten(jax.tree.structure(abstract_tree), [loaded[name] for name in wanted])


def tree_hash(tree: Any) -> str:
    """SHA-256 (hex) of the names, shapes, dtypes and bytes of all leaves: the same on every process and machine.

    Sharding and the order of keys do not enter. One leaf at a time is brought to the host; a `StoredArray` is read when
    its turn comes. On several hosts every process must call it.
    """
    digest = hashlib.sha256()
    for name, leaf in sorted(named_leaves(tree).items()):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable and not leaf.is_fully_replicated:
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        value = np.asarray(leaf.load() if isinstance(leaf, StoredArray) else leaf, order="C")
        digest.update(f"{name}\0{value.shape}\0{value.dtype.name}\0".encode())
        digest.update(value.reshape(-1).view(np.uint8))
    return digest.hexdigest()


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves in tree order, by path: `layers/0/kernel`. Refuses keys that the name would not tell apart."""
    leaves = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        for entry in path:
            key = getattr(entry, "key", 0)  # positions in lists and fields of named tuples are plain
            if isinstance(key, int) and key >= 0:
                continue
            if not isinstance(key, str) or not key or "/" in key or key.isdecimal():
                raise ValueError(
                    f"key {key!r} in {jax.tree_util.keystr(path)}: keys are non-negative ints, or strings without '/' "
                    "that are not numbers"
                )
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            raise ValueError(f"leaf {name} is {leaf!r}: make it an array")
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise ValueError(f"leaf {name} is a typed random key: use jax.random.key_data(key)")
        leaves[name] = leaf
    return leaves


def nested(leaves: Mapping[str, Any]) -> dict:
    """The inverse of `named_leaves`, with dicts for all containers."""
    tree: dict = {}
    for name, leaf in leaves.items():
        *parents, last = [int(key) if key.isdecimal() else key for key in name.split("/")]
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree


def _savable(tree: Any) -> dict[str, jax.Array | np.ndarray]:
    leaves = named_leaves(tree)
    if not leaves:
        raise ValueError("the tree to save has no leaves")
    for name, leaf in leaves.items():
        if isinstance(leaf, np.generic):
            leaves[name] = np.asarray(leaf)
        if jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype:
            raise ValueError(f"leaf {name} is {leaf.dtype}, which JAX would restore in 32 bits: convert it first")
        if leaf.size == 0:
            raise ValueError(f"leaf {name} has shape {leaf.shape}: arrays without elements cannot be saved")
    return leaves


def _with_sharding(name: str, leaf: Any, sharding: Sharding | None) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or sharding
    if sharding is None:
        if jax.process_count() > 1:
            raise ValueError(f"leaf {name} has no sharding: several processes must say where each leaf goes")
        sharding = SingleDeviceSharding(jax.devices()[0])
    try:
        sharding.shard_shape(tuple(leaf.shape))
    except ValueError as error:
        raise ValueError(f"leaf {name} of shape {tuple(leaf.shape)} does not divide over {sharding}") from error
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _check_same_leaves(path: epath.Path, wanted: Mapping[str, Any], stored: Mapping[str, Any], partial: bool) -> None:
    def signature(leaf: Any) -> str:
        return f"{leaf.dtype}{list(leaf.shape)}"

    groups = {
        "missing from the checkpoint": [f"{n} {signature(wanted[n])}" for n in wanted if n not in stored],
        "unexpected in the checkpoint": [
            f"{n} {signature(stored[n])}" for n in stored if n not in wanted and not partial
        ],
        "different": [
            f"{n}: {signature(stored[n])} in the checkpoint, {signature(wanted[n])} wanted"
            for n in wanted
            if n in stored and signature(stored[n]) != signature(wanted[n])
        ],
    }
    lines = []
    for title, entries in groups.items():
        if entries:
            more = [f"... and {len(entries) - _LISTED} more"] if len(entries) > _LISTED else []
            lines += [f"  {title} ({len(entries)} leaves):"]
            lines += [f"    {entry}" for entry in entries[:_LISTED] + more]
    if lines:
        raise CheckpointError(
            f"{path} is a checkpoint of another architecture. Use the config that it was trained with, or another "
            "checkpoint.\n" + "\n".join(lines)
        )


def _is_complete(path: epath.Path) -> bool:
    # Orbax writes the commit file last, then (where the file system can) renames the directory to its final name.
    return (path / "commit_success.txt").exists() and ocp.is_orbax_checkpoint(path)


def _read_metadata(path: epath.Path) -> ocp.CheckpointMetadata:
    if not path.exists():
        raise CheckpointError(f"{path} does not exist: check the path")
    if not _is_complete(path):
        raise CheckpointError(
            f"{path} is not a complete checkpoint: it was only half written (or copied), or is something else. "
            "Use another checkpoint, or remove it and write it again."
        )
    try:
        check_files(path / _TREE)
        metadata = ocp.metadata(path)
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    if metadata.metadata is None:  # how Orbax says that it could not read a file
        raise _damaged(path, "its names and shapes cannot be read")
    return metadata


def _damaged(path: epath.Path, reason: Exception | str) -> CheckpointError:
    return CheckpointError(
        f"{path} is damaged ({str(reason)[:_SHOWN]}): restore it from a copy, or remove it (a run then continues from "
        "its previous checkpoint)"
    )
