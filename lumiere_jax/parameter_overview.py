"""A table of every parameter of a run: shape, type, where it lies, mean and standard deviation."""

import dataclasses
import os
import pathlib

import jax
import numpy as np
from clu import parameter_overview
from jax.experimental import multihost_utils


@dataclasses.dataclass(frozen=True)
class _Row:
    name: str
    shape: tuple[int, ...]
    dtype: str
    size: int
    mean: float
    std: float
    sharding: tuple | str


def write_overview(path: str | os.PathLike[str], trained: dict, frozen: dict) -> None:
    """Writes the table, and prints where it is. All processes of a run call it; the first one writes.

    Args:
      path: of the text file.
      trained, frozen: the parameters, nested dicts of arrays on the devices.
    """
    rows = [
        _row(f"{part}/{name}", leaf)
        for part, tree in (("trained", trained), ("frozen", frozen))
        for name, leaf in parameter_overview.flatten_dict(tree).items()
    ]
    if jax.process_index():
        return
    pathlib.Path(path).write_text(parameter_overview.make_table(rows) + "\n", encoding="utf-8")
    print(f"every parameter's shape, dtype, sharding, mean and std: {path}")


def _row(name: str, leaf: jax.Array) -> _Row:
    # On the host, as a program with a reduction for each parameter takes XLA seconds to compile.
    whole = leaf if leaf.is_fully_replicated else multihost_utils.process_allgather(leaf, tiled=True)
    values = np.asarray(whole, np.float32)
    sharding = getattr(leaf.sharding, "spec", None)
    return _Row(
        name,
        leaf.shape,
        str(leaf.dtype),
        leaf.size,
        float(values.mean(dtype=np.float64)),
        float(values.std(dtype=np.float64)),
        str(leaf.sharding) if sharding is None else tuple(sharding),
    )
