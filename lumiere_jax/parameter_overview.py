"""A table of every parameter of a run: shape, type, where it lies, mean and standard deviation."""

import dataclasses
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from clu import parameter_overview
from jaxtyping import Array, Float

from lumiere_jax.distributed import processes


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
    leaves = {
        f"{part}/{name}": leaf
        for part, tree in (("trained", trained), ("frozen", frozen))
        for name, leaf in parameter_overview.flatten_dict(tree).items()
    }
    # On the devices: billions of parameters would take a host minutes.
    statistics = jax.device_get([_mean_std(leaf) for leaf in leaves.values()])
    if not processes.is_first():
        return
    rows = [_row(name, leaf, *found) for (name, leaf), found in zip(leaves.items(), statistics, strict=True)]
    pathlib.Path(path).write_text(parameter_overview.make_table(rows) + "\n", encoding="utf-8")
    print(f"every parameter's shape, dtype, sharding, mean and std: {path}")


@jax.jit  # compiled once for each shape, in a fraction of the time of one program for all
def _mean_std(leaf: Array) -> Float[Array, "2"]:
    wide = leaf.astype(jnp.float32)
    return jnp.stack([wide.mean(), wide.std()])


def _row(name: str, leaf: jax.Array, mean: np.floating, std: np.floating) -> _Row:
    spec = getattr(leaf.sharding, "spec", None)
    sharding = str(leaf.sharding) if spec is None else tuple(spec)
    return _Row(name, leaf.shape, str(leaf.dtype), leaf.size, float(mean), float(std), sharding)
