"""What an import makes of a file: which of its arrays become which parameters, and what is left over or missing."""

from collections.abc import Callable, Collection, Mapping

import jax
from flax import nnx

from lumiere_jax.checkpoints.checkpointing import named_leaves
from lumiere_jax.text.storage import StoredArray

Shapes = dict[str, tuple[int, ...] | None]
_LISTED = 6  # names on the screen; report.json has all
_IMPORTED_TYPES = ("float32", "float16", "bfloat16")


class ImportReport:
    """The correspondence of a file and a model, both by name. Made from headers alone: nothing is read.

    Attributes:
      arrays: what is imported, by parameter name.
      new: parameters that the file lacks and that were allowed to: they start from this project's initialisation.
      missing: parameters that the file lacks.
      misshapen: parameters of another shape in the file than in the model, and the two shapes.
      unused: what the file holds besides.
    """

    def __init__(
        self,
        found: Mapping[str, StoredArray],
        expected: Mapping[str, tuple[int, ...]],
        *,
        beside: Shapes | None = None,
        allow_missing: Collection[str] = (),
    ):
        """Compares.

        Args:
          found: by parameter name.
          expected: parameter name -> shape in the model.
          beside: what the file holds besides `found`.
          allow_missing: parameters that may be missing.

        Raises:
          ValueError: `allow_missing` names something that is not missing.
        """
        missing = {name: shape for name, shape in expected.items() if name not in found}
        not_missing = sorted(set(allow_missing) - missing.keys())
        if not_missing:
            raise ValueError(f"allow_missing={','.join(not_missing)}: not among the missing ones, {sorted(missing)}")
        self.arrays = {name: found[name] for name in expected if name in found}
        self.new = {name: shape for name, shape in missing.items() if name in allow_missing}
        self.missing = {name: shape for name, shape in missing.items() if name not in allow_missing}
        self.misshapen = {
            name: f"{_show(array.shape)} in the file, {_show(expected[name])} in the model"
            for name, array in self.arrays.items()
            if array.shape != expected[name]
        }
        unused = {array.source: array.shape for name, array in found.items() if name not in expected}
        self.unused: Shapes = unused | (beside or {})

    def check(self) -> None:
        """Raises a ValueError that lists what keeps the file from being imported."""
        quantised = {
            f"{name} ({array.dtype})": array.shape
            for name, array in self.arrays.items()
            if array.dtype.name not in _IMPORTED_TYPES
        }
        problems = [
            *_listing("missing in the file", self.missing),
            *_listing("of another shape in the file than in the model", self.misshapen),
            *_listing(f"not stored as {', '.join(_IMPORTED_TYPES)}", quantised),
        ]
        if problems:
            hint = _listing("in the file but unknown", self.unused) if self.missing else []
            raise ValueError("\n".join(["the weights are not those of this model:", *problems, *hint]))

    @property
    def parameters(self) -> int:
        """The number of scalars that are imported."""
        return sum(array.size for array in self.arrays.values())

    def summary(self) -> str:
        """One screen."""
        types = {array.dtype.name: 0 for array in self.arrays.values()}
        for array in self.arrays.values():
            types[array.dtype.name] += array.size
        stored = ", ".join(f"{size:,} in {dtype}" for dtype, size in sorted(types.items()))
        lines = [f"  mapped: {len(self.arrays)} arrays, {self.parameters:,} parameters ({stored})"]
        for title, shapes in (("newly initialised", self.new), ("unused", self.unused), ("missing", self.missing)):
            lines += _listing(title, shapes) or [f"  {title}: none"]
        return "\n".join(lines)

    def as_json(self) -> dict:
        """Everything, by name."""
        mapped = {
            name: {"from": array.source, "shape": array.shape, "stored_as": array.dtype.name}
            for name, array in self.arrays.items()
        }
        others = {"newly_initialised": self.new, "unused": self.unused, "missing": self.missing}
        return {"parameters": self.parameters, "mapped": mapped, **others}


def _listing(title: str, entries: Mapping[str, tuple[int, ...] | str | None]) -> list[str]:
    if not entries:
        return []
    lines = [f"  {title}: {len(entries)}"]
    lines += [f"    {name}  {_show(entry)}" for name, entry in list(entries.items())[:_LISTED]]
    if len(entries) > _LISTED:
        lines.append(f"    ... and {len(entries) - _LISTED} more")
    return lines


def _show(entry: tuple[int, ...] | str | None) -> str:
    if entry is None:
        return "of unknown shape"
    return entry if isinstance(entry, str) else str(list(entry))


def parameter_shapes(build: Callable[[], nnx.Module]) -> dict[str, tuple[int, ...]]:
    """The shapes of a module's parameters by path ("down/0/layers/1/resnet/conv1/kernel"); nothing is computed."""
    return {name: leaf.shape for name, leaf in _parameters(nnx.eval_shape(build)).items()}


def initial_values(build: Callable[[], nnx.Module], names: Collection[str]) -> dict[str, StoredArray]:
    """The initialisation of the parameters `names` alone: jit leaves out the computation of the others."""
    draw = jax.jit(lambda: {name: leaf for name, leaf in _parameters(build()).items() if name in names})
    return {name: StoredArray.in_memory(jax.device_get(array)) for name, array in draw().items()}


def _parameters(module: nnx.Module) -> dict[str, jax.Array | jax.ShapeDtypeStruct]:
    return named_leaves(nnx.to_pure_dict(nnx.state(module)))
