"""Parameters, activations and FLOPs of every variant, from shapes and the compiler: writes docs/model_sizes.md.

    python -m benchmarks.model_sizes

Nothing is run and no weights are made: the programs that train and sample are lowered for abstract arrays, and XLA's
cost analysis counts the operations of the lowered program (a multiply-add is two). A test compares that count with the
compiled program's. One to two minutes on a CPU.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.extend.core
import ml_collections
import tqdm
from absl import app
from flax import nnx

from configs import deepfloyd_if, ssr, stunet
from lumiere_jax.abstract_model import abstract_model
from lumiere_jax.abstract_program import cast, forward_flops, inputs, predict, step_flops
from lumiere_jax.distributed import platform
from lumiere_jax.distributed.model_flops import count_flops
from lumiere_jax.models import parameter_partition
from lumiere_jax.models.rematerialization import CHOICES, Rematerialization
from lumiere_jax.models.stunet import deflate
from lumiere_jax.models.text_to_video import TextToVideo

_IMPORTED_SSR = tuple(name for name in deepfloyd_if.STAGE_2 if "tiny" not in name)
_SSR = ("demo_4x", *_IMPORTED_SSR, *ssr.EFFICIENT)
VARIANTS = ("demo", "small", *(name for name in deepfloyd_if.STAGE_1 if "tiny" not in name), *_SSR)
_REMAT_VARIANTS = ("demo", "small", "if_m")
_ENLARGED = 1024  # pixels: the paper's result
_DOCUMENT = pathlib.Path(__file__).parent.parent / "docs" / "model_sizes.md"
# What a rough sketch in another form of code had found, TFLOP: with temporal strides 2, 2, 2 and no attention at 64x64.
_SKETCH = {"if_m": 54.5, "if_l": 150.9, "if_xl": 728.5}


@dataclasses.dataclass(frozen=True)
class Size:
    """What one variant costs at batch 1. FLOPs are those of one clip."""

    variant: str
    clip: str
    spatial: int  # parameters, frozen
    temporal: int  # parameters, trained
    forward: float  # FLOPs
    step: float  # ... of a training step that keeps all activations
    full_step: float  # ... if the image model were trained too
    activations: int  # bytes that the backward pass reads


def get_config(variant: str) -> ml_collections.ConfigDict:
    """The config of a variant of configs/stunet.py, or of configs/ssr.py."""
    return (ssr if variant in _SSR else stunet).get_config(variant)


def measure(variant: str) -> Size:
    """Everything about one variant."""
    config = with_remat(get_config(variant), {})
    model = abstract_model(config)
    parts = _, trained, frozen = parameter_partition.split(model)
    graphdef, every = nnx.split(model)
    clip = config.clip
    return Size(
        variant=variant,
        clip=f"{clip.frames}×{clip.size}×{clip.size}",
        spatial=parameter_partition.count(frozen),
        temporal=parameter_partition.count(trained),
        forward=forward_flops(config),
        step=step_flops(config, parts),
        full_step=step_flops(config, (graphdef, nnx.to_pure_dict(every), {})),
        activations=activation_bytes(config, model),
    )


def with_remat(config: ml_collections.ConfigDict, policies: dict[str, str]) -> ml_collections.ConfigDict:
    """A copy of a config with these fields of `config.remat`; the others are "none"."""
    config = ml_collections.ConfigDict(config.to_dict())
    config.remat = dataclasses.asdict(Rematerialization(**policies))
    return config


def measure_remat(variant: str) -> list[tuple[int, float]]:
    """Bytes of activations and FLOPs of a training step, of one clip, with each of the `CHOICES`."""
    found = []
    for policies in tqdm.tqdm(CHOICES, desc=variant, leave=False):
        config = with_remat(get_config(variant), policies)
        model = abstract_model(config)
        step = step_flops(config, parameter_partition.split(model))
        found.append((activation_bytes(config, model), step))
    return found


def measure_enlarged(variant: str) -> tuple[float, float, float, float]:
    """FLOPs of one forward pass for one frame of `_ENLARGED` pixels: what the columns of `enlarged_table` say."""
    config = with_remat(get_config(variant), {})
    config.clip.size = _ENLARGED
    frames, resizes = config.clip.frames, len(config.temporal.strides)
    image = abstract_model(config)
    image.unet = deflate(image.unet)
    graphdef, parameters = nnx.split(image)
    parameters = cast(nnx.to_pure_dict(parameters), config)
    clips = (
        count_flops(functools.partial(predict, graphdef), {}, parameters, *inputs(config)),
        forward_flops(changed(config, temporal={"strides": (1,) * resizes})),
        forward_flops(config),
        forward_flops(changed(config, temporal={"spatial_kernel": 1})),
    )
    return tuple(flops / frames for flops in clips)


def changed(
    config: ml_collections.ConfigDict, *, temporal: dict | None = None, unet: dict | None = None
) -> ml_collections.ConfigDict:
    """A copy of a config with other fields of `config.temporal` and `config.image_model.unet`."""
    config = ml_collections.ConfigDict(config.to_dict())
    config.temporal.update(temporal or {})
    config.image_model.unet.update(unet or {})
    return config


def activation_bytes(config: ml_collections.ConfigDict, model: TextToVideo) -> int:
    """Bytes of what one clip's forward pass leaves for the backward pass, with the policies of `config.remat`.

    JAX's residuals without the parameters: what XLA fuses away or computes again it need not keep, so its own number
    for a device is smaller.
    """
    graphdef, trained, frozen = parameter_partition.split(model)
    frozen = cast(frozen, config)
    return residual_bytes(functools.partial(predict, graphdef), trained, frozen, *inputs(config))


def residual_bytes(function: Callable, parameters: Any, *inputs: Any) -> int:
    """Bytes of what `function(parameters, *inputs)` leaves for its derivative by the parameters, less what it got."""

    def residuals(parameters: Any, *inputs: Any) -> Any:
        return jax.vjp(lambda parameters: function(parameters, *inputs), parameters)[1]

    traced = jax.make_jaxpr(residuals)(parameters, *inputs).jaxpr
    kept = {variable for variable in traced.outvars if isinstance(variable, jax.extend.core.Var)}
    return sum(variable.aval.size * variable.aval.dtype.itemsize for variable in kept - set(traced.invars))


def with_tables(document: str, tables: dict[str, str]) -> str:
    """A markdown document with new tables between its marks `<!-- name -->` and `<!-- end -->`."""
    for name, table in tables.items():
        before, mark, rest = document.partition(f"<!-- {name} -->\n")
        if not mark:
            raise ValueError(f"the document has no mark <!-- {name} --> to put a table at")
        document = f"{before}{mark}{table}\n{rest[rest.index('<!-- end -->') :]}"
    return document


def size_table(sizes: Sequence[Size]) -> str:
    """One row a variant."""
    columns = ("variant", "clip", "frozen parameters", "temporal parameters", "forward, TFLOP", "training step, TFLOP")
    columns += ("step / forward", "full fine-tuning / forward", "activations, GB")
    return _table(columns, map(_size_row, sizes))


def enlarged_table(measured: dict[str, tuple[float, float, float, float]]) -> str:
    """One row a variant, of what `measure_enlarged` found."""
    columns = ("variant", "image model, TFLOP a frame", "inflated, strides 1", "inflated", "and `spatial_kernel` 1")
    rows = (f"| `ssr.py:{variant}` | {' | '.join(map(_tera, flops))} |" for variant, flops in measured.items())
    return _table(columns, rows)


def sketch_table(sizes: Sequence[Size]) -> str:
    """The variants that the sketch had, brought step by step to its form."""
    columns = ("variant", "forward, TFLOP", "without attention at 64×64", "and with strides 2, 2, 2", "the sketch")
    columns += ("strides 1, 1, 1 / 2, 2, 2",)
    return _table(columns, [_sketch_row(size) for size in sizes if size.variant in _SKETCH])


def remat_table(forward: dict[str, float], measured: dict[str, list[tuple[int, float]]]) -> str:
    """One row a policy.

    Args:
      forward: FLOPs of a forward pass of each variant.
      measured: `measure_remat` of each variant.
    """
    columns = ["`config.remat`"]
    columns += [f"`{variant}`, GB | step / forward" for variant in measured]
    rows = []
    for number, policies in enumerate(CHOICES):
        cells = [", ".join(f"{kind}: {policy}" for kind, policy in policies.items()) or "none"]
        for variant, found in measured.items():
            kept, step = found[number]
            cells.append(f"{kept / 1e9:.3g} | {step / forward[variant]:.2f}")
        rows.append(f"| {' | '.join(cells)} |")
    return _table(" | ".join(columns).split(" | "), rows)


def _table(columns: Sequence[str], rows: Iterable[str]) -> str:
    return "\n".join([f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *rows])


def _size_row(size: Size) -> str:
    file = "ssr.py" if size.variant in _SSR else "stunet.py"
    return (
        f"| `{file}:{size.variant}` | {size.clip} | {size.spatial:,} | {size.temporal:,} | {_tera(size.forward)} "
        f"| {_tera(size.step)} | {size.step / size.forward:.2f} | {size.full_step / size.forward:.2f} "
        f"| {size.activations / 1e9:.3g} |"
    )


def _sketch_row(size: Size) -> str:
    config = get_config(size.variant)
    attention = config.image_model.unet.cross_attention
    no_attention = {"cross_attention": (False, False, *attention[2:])}  # at 64x64, the second level
    as_sketched = forward_flops(changed(config, temporal={"strides": (2, 2, 2)}, unet=no_attention))
    without = forward_flops(changed(config, unet=no_attention))
    no_stride = forward_flops(changed(config, temporal={"strides": (1, 1, 1)}, unet=no_attention))
    return (
        f"| `{size.variant}` | {_tera(size.forward)} | {_tera(without)} | {_tera(as_sketched)} "
        f"| {_SKETCH[size.variant]} | {no_stride / as_sketched:.2f} |"
    )


def _tera(flops: float) -> str:
    return f"{flops / 1e12:.3g}" if flops < 1e15 else f"{flops / 1e12:.0f}"


def main(_argv: list[str]) -> None:
    """Entry point."""
    sizes = [measure(variant) for variant in tqdm.tqdm(VARIANTS, unit="variant")]
    tables = {"sizes": size_table(sizes), "sketch": sketch_table(sizes)}
    forward = {size.variant: size.forward for size in sizes}
    tables["enlarged"] = enlarged_table({variant: measure_enlarged(variant) for variant in tqdm.tqdm(_SSR)})
    tables["remat"] = remat_table(forward, {variant: measure_remat(variant) for variant in _REMAT_VARIANTS})
    print("\n\n".join(tables.values()))
    _DOCUMENT.write_text(with_tables(_DOCUMENT.read_text(), tables))


if __name__ == "__main__":
    platform.configure()
    app.run(main)
