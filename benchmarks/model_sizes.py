"""Parameters, activations and FLOPs of every variant, from shapes and the compiler: writes docs/model_sizes.md.

    python -m benchmarks.model_sizes

Nothing is run and no weights are made: the programs that train and sample are lowered for abstract arrays, and XLA's
cost analysis counts the operations of the lowered program (a multiply-add is two). A test compares that count with the
compiled program's. One to two minutes on a CPU.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import ml_collections
import tqdm
from absl import app
from flax import nnx

from configs import deepfloyd_if, ssr, stunet
from lumiere_jax.abstract_model import abstract_batch, abstract_model
from lumiere_jax.distributed import platform
from lumiere_jax.distributed.model_flops import count_flops
from lumiere_jax.models import parameter_partition
from lumiere_jax.models.text_to_video import TextToVideo
from lumiere_jax.train_setup import step_settings
from lumiere_jax.train_step import create_state, train_step

VARIANTS = ("demo", "small", *(name for name in deepfloyd_if.STAGE_1 | deepfloyd_if.STAGE_2 if "tiny" not in name))
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
    return (ssr if variant in deepfloyd_if.STAGE_2 else stunet).get_config(variant)


def measure(variant: str) -> Size:
    """Everything about one variant."""
    config, model = get_config(variant), abstract_model(get_config(variant))
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


def forward_flops(
    config: ml_collections.ConfigDict, *, temporal: dict | None = None, unet: dict | None = None
) -> float:
    """FLOPs of one evaluation of the network on one clip, as in sampling without guidance.

    Args:
      config: of the model.
      temporal: fields of `config.temporal` to change.
      unet: fields of `config.image_model.unet` to change.
    """
    config = ml_collections.ConfigDict(config.to_dict())
    config.temporal.update(temporal or {})
    config.image_model.unet.update(unet or {})
    graphdef, trained, frozen = parameter_partition.split(abstract_model(config))
    return count_flops(functools.partial(_predict, graphdef), trained, _cast(frozen, config), *_inputs(config))


def step_flops(config: ml_collections.ConfigDict, parts: tuple[nnx.GraphDef, dict, dict], batch_size: int = 1) -> float:
    """FLOPs of a training step that keeps all activations.

    Args:
      config: of the model.
      parts: graph definition, trained and frozen parameters.
      batch_size: clips.
    """
    graphdef, trained, frozen = parts
    settings = step_settings(config) | {"accumulation_steps": 1}
    update = functools.partial(train_step, graphdef=graphdef, **settings)
    state = jax.eval_shape(lambda parameters: create_state(parameters, settings["optimizer"]), trained)
    return count_flops(update, state, _cast(frozen, config), abstract_batch(config, batch_size), 0)


def activation_bytes(config: ml_collections.ConfigDict, model: TextToVideo) -> int:
    """Bytes of what one clip's forward pass leaves for the backward pass, without rematerialisation.

    JAX's residuals without the parameters: what XLA fuses away or computes again it need not keep, so its own number
    for a device is smaller.
    """
    graphdef, trained, frozen = parameter_partition.split(model)
    given = (_cast(frozen, config), *_inputs(config))

    def residuals(trained: dict, *given: Any) -> Any:
        return jax.vjp(lambda trained: _predict(graphdef, trained, *given), trained)[1]

    traced = jax.make_jaxpr(residuals)(trained, *given).jaxpr
    kept = {variable for variable in traced.outvars if isinstance(variable, jax.extend.core.Var)}
    return sum(variable.aval.size * variable.aval.dtype.itemsize for variable in kept - set(traced.invars))


def _predict(
    graphdef: nnx.GraphDef, trained: dict, frozen: dict, video: jax.Array, time: jax.Array, text: jax.Array, *given: Any
) -> jax.Array:
    model = nnx.merge(graphdef, trained, frozen)
    return model.predict(video, time, model.embed_text(text), *given)


def _inputs(config: ml_collections.ConfigDict) -> tuple:
    """Of `TextToVideo.predict`, for one clip."""
    batch, time = abstract_batch(config, 1), jax.ShapeDtypeStruct((1,), jnp.float32)
    given = (batch.video, time) if config.diffusion.low_res_factor else ()
    return batch.video, time, batch.text, *given


def _cast(frozen: dict, config: ml_collections.ConfigDict) -> dict:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(config.compute_dtype)), frozen)


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


def sketch_table(sizes: Sequence[Size]) -> str:
    """The variants that the sketch had, brought step by step to its form."""
    columns = ("variant", "forward, TFLOP", "without attention at 64×64", "and with strides 2, 2, 2", "the sketch")
    columns += ("strides 1, 1, 1 / 2, 2, 2",)
    return _table(columns, [_sketch_row(size) for size in sizes if size.variant in _SKETCH])


def _table(columns: Sequence[str], rows: Iterable[str]) -> str:
    return "\n".join([f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *rows])


def _size_row(size: Size) -> str:
    file = "ssr.py" if size.variant in deepfloyd_if.STAGE_2 else "stunet.py"
    return (
        f"| `{file}:{size.variant}` | {size.clip} | {size.spatial:,} | {size.temporal:,} | {_tera(size.forward)} "
        f"| {_tera(size.step)} | {size.step / size.forward:.2f} | {size.full_step / size.forward:.2f} "
        f"| {size.activations / 1e9:.3g} |"
    )


def _sketch_row(size: Size) -> str:
    config = get_config(size.variant)
    attention = config.image_model.unet.cross_attention
    no_attention = {"cross_attention": (False, False, *attention[2:])}  # at 64x64, the second level
    as_sketched = forward_flops(config, temporal={"strides": (2, 2, 2)}, unet=no_attention)
    without = forward_flops(config, unet=no_attention)
    no_stride = forward_flops(config, temporal={"strides": (1, 1, 1)}, unet=no_attention)
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
    print("\n\n".join(tables.values()))
    _DOCUMENT.write_text(with_tables(_DOCUMENT.read_text(), tables))


if __name__ == "__main__":
    platform.configure()
    app.run(main)
