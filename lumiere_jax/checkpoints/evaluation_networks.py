"""The published weights of the networks that evaluation looks through: I3D, C3D and CLIP, into our names and layouts.

What is read, without PyTorch, TensorFlow or Chainer:

I3D    a state dict with the names of the common PyTorch packaging (`Mixed_3b.b0.conv3d.weight`)
C3D    Chainer's `.npz` (`conv1a/W`)
CLIP   Hugging Face's directory: `config.json`, and `model.safetensors`

State dicts may be `.safetensors` or `.npz`; `.pt`, `.pth` and `.bin` are read by PyTorch, which is imported only then.
Where a file lacks an array, has one too many or one of another shape, the error names it. Files are found, and where to
get them is said, in `evaluation/published_weights.py`.
"""

import dataclasses
import json
import os
import pathlib
import pickle
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx

from lumiere_jax.checkpoints import safetensors_files
from lumiere_jax.checkpoints.checkpointing import nested
from lumiere_jax.checkpoints.import_report import ImportReport, parameter_shapes
from lumiere_jax.models.c3d import C3D, CONVOLUTIONS, LAST_SIZE, LINEARS, C3DConfig
from lumiere_jax.models.clip import CLIP, CLIPConfig, TowerConfig
from lumiere_jax.models.i3d import I3D, I3DConfig
from lumiere_jax.text.storage import StoredArray

Arrays = dict[str, StoredArray]
Path = str | os.PathLike[str]
Network = TypeVar("Network", bound=nnx.Module)

_PYTORCH = (".pt", ".pth", ".bin")
_LINEAR = {"kernel": "weight", "bias": "bias"}
_NORM = {"scale": "weight", "bias": "bias"}


def read_arrays(path: Path) -> Arrays:
    """The arrays of a file of weights, by the names that it gives them.

    Args:
      path: `.safetensors` (or an index of several), `.npz`, or a state dict of PyTorch's in `.pt`, `.pth` or `.bin`.

    Raises:
      FileNotFoundError: nothing at `path`.
      ImportError: a PyTorch file, and PyTorch is not installed.
      ValueError: another format, a damaged file, or a TorchScript archive.
    """
    path = pathlib.Path(path)
    if path.suffix in (".safetensors", ".json"):
        return safetensors_files.open_arrays(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    if path.suffix == ".npz":
        return _read_npz(path)
    if path.suffix in _PYTORCH:
        return _read_pytorch(path)
    raise ValueError(f"{path}: weights are read from .safetensors, .npz, {', '.join(_PYTORCH)}")


def _read_npz(path: pathlib.Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: StoredArray.in_memory(file[name], name) for name in file.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged, or no .npz of plain arrays ({error}); download it again") from error


def _read_pytorch(path: pathlib.Path) -> Arrays:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise ValueError(
                    f"{path} is a TorchScript archive: it holds a program, with names of its own, which is not run "
                    "here. Take the state dict (lumiere_jax/evaluation/published_weights.py says which file)"
                )
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"{path} is PyTorch's: `pip install torch`, or turn it into .safetensors where PyTorch is installed "
            "(docs/evaluation.md)"
        ) from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is damaged, or holds more than tensors ({error}); download it again") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{path} is no state dict (tensors by name): save `model.state_dict()`")
    return {name: StoredArray.in_memory(tensor.numpy(), name) for name, tensor in state.items()}


def load_i3d(path: Path, config: I3DConfig | None = None) -> I3D:
    """I3D with published weights.

    Args:
      path: as for `read_arrays`; names as `Conv3d_1a_7x7.conv3d.weight`, `Mixed_3b.b1a.bn.running_mean`. A scale of the
        batch normalisation (`.bn.weight`), where there is one, is multiplied into the kernel before it.
      config: None: the published network, 400 classes. `I3DConfig(classes=600)` for Kinetics-600.

    Raises:
      FileNotFoundError, ImportError, ValueError: as `read_arrays`; also for arrays that are missing, of other shapes,
        or unknown.
    """
    config = config or I3DConfig()
    stored = {name: array for name, array in read_arrays(path).items() if not name.endswith(".num_batches_tracked")}
    units = {"conv_1a": "Conv3d_1a_7x7", "conv_2b": "Conv3d_2b_1x1", "conv_2c": "Conv3d_2c_3x3"}
    for level in "345":
        for i in range(len(getattr(config, f"mixed_{level}"))):
            module = f"Mixed_{level}{'bcdef'[i]}"
            units |= {
                f"mixed_{level}/{i}/{unit}": f"{module}.{unit}" for unit in ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")
            }
    names = {"logits": "logits.conv3d.weight", "logits_bias": "logits.conv3d.bias"}
    for ours, theirs in units.items():
        names[f"{ours}/kernel"] = f"{theirs}.conv3d.weight"
        names |= {
            f"{ours}/{here}": f"{theirs}.bn.{there}"
            for here, there in (("bias", "bias"), ("mean", "running_mean"), ("variance", "running_var"))
        }
        if f"{theirs}.bn.weight" in stored:
            _fold_scale(stored, theirs)
    found = _renamed(stored, names)
    for name, array in found.items():
        if name.endswith("/kernel") and len(array.shape) == 5:
            found[name] = array.transpose(2, 3, 4, 1, 0)
    if len(found.get("logits", StoredArray.in_memory(np.zeros(0))).shape) == 5:
        found["logits"] = _changed(found["logits"], lambda weight: weight[:, :, 0, 0, 0].T)
    return _build(lambda: I3D(config, rngs=nnx.Rngs(0)), found, _beside(stored, names), path)


def _fold_scale(stored: Arrays, unit: str) -> None:
    """Takes the scale out of `stored`: s (K x - m) r + b = ((s K) x - s m) r + b."""
    scale = stored.pop(f"{unit}.bn.weight").load()
    for name in (f"{unit}.conv3d.weight", f"{unit}.bn.running_mean"):
        if name in stored and stored[name].shape[0] == len(scale):
            aligned = scale.reshape(-1, *[1] * (len(stored[name].shape) - 1))
            stored[name] = _changed(stored[name], lambda array, aligned=aligned: array * aligned)


def load_c3d(path: Path, config: C3DConfig | None = None) -> C3D:
    """C3D of UCF101 with the weights that TGANv2's authors published.

    Args:
      path: Chainer's `.npz`: `conv1a/W` as [out, in, time, height, width], `fc6/W` as [out, in], biases `b`. What fc6
        sees is flattened channels first.
      config: None: the published network.

    Raises:
      FileNotFoundError, ImportError, ValueError: as `load_i3d`.
    """
    config = config or C3DConfig()
    stored = read_arrays(path)
    names = {f"{layer}/kernel": f"{layer}/W" for layer in (*CONVOLUTIONS, *LINEARS)}
    names |= {f"{layer}/bias": f"{layer}/b" for layer in (*CONVOLUTIONS, *LINEARS)}
    found = _renamed(stored, names)
    channels = config.convolutions[-1]
    for name, array in found.items():
        if name == "fc6/kernel" and array.shape[1:] == (channels * LAST_SIZE**2,):
            found[name] = _changed(array, lambda weight: _channels_last(weight, channels))
        elif len(array.shape) > 1:
            found[name] = array.transpose(1, 0) if len(array.shape) == 2 else array.transpose(2, 3, 4, 1, 0)
    return _build(lambda: C3D(config, rngs=nnx.Rngs(0)), found, _beside(stored, names), path)


def _channels_last(weight: np.ndarray, channels: int) -> np.ndarray:
    """`[out, channels height width]` to `[height width channels, out]`."""
    maps = weight.reshape(-1, channels, LAST_SIZE, LAST_SIZE)
    return maps.transpose(2, 3, 1, 0).reshape(-1, len(weight))


def load_clip(path: Path) -> CLIP:
    """CLIP with published weights.

    Args:
      path: a directory of Hugging Face's: `config.json`, and `model.safetensors` or `pytorch_model.bin`.

    Raises:
      FileNotFoundError, ImportError, ValueError: as `load_i3d`; also for a network that is no CLIP, or one with another
        activation than the quick GELU.
    """
    path = pathlib.Path(path)
    if not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"{path / 'config.json'} does not exist: give the directory of a CLIP of Hugging Face's"
        )
    config = clip_config(json.loads((path / "config.json").read_text()))
    weights = path / "pytorch_model.bin"
    has_safetensors = safetensors_files.holds_safetensors(path)
    if not has_safetensors and not weights.is_file():
        raise FileNotFoundError(f"{path} has neither model.safetensors nor pytorch_model.bin")
    stored = safetensors_files.open_arrays(path) if has_safetensors else read_arrays(weights)
    # A temperature of the training, and counters.
    stored = {name: array for name, array in stored.items() if not name.endswith(("logit_scale", ".position_ids"))}
    names = _clip_names(config)
    found = {name: _clip_layout(name, array) for name, array in _renamed(stored, names).items()}
    return _build(lambda: CLIP(config, rngs=nnx.Rngs(0)), found, _beside(stored, names), path)


def clip_config(published: Mapping[str, Any]) -> CLIPConfig:
    """The sizes in a `config.json` of Hugging Face's; what it leaves out is ViT-B/32's.

    Raises:
      ValueError: not a CLIP's, or an activation that is not the quick GELU.
    """
    if published.get("model_type") != "clip":
        raise ValueError(f"config.json: model_type={published.get('model_type')!r}, not 'clip'")
    default = CLIPConfig()
    text, vision = (published.get(f"{tower}_config") or {} for tower in ("text", "vision"))
    for tower, given in (("text", text), ("vision", vision)):
        if given.get("hidden_act", "quick_gelu") != "quick_gelu":
            raise ValueError(
                f"config.json: {tower}_config.hidden_act={given['hidden_act']!r}: only 'quick_gelu' is known"
            )

    def sizes(given: Mapping[str, Any], otherwise: TowerConfig) -> TowerConfig:
        fields = (field.name for field in dataclasses.fields(TowerConfig))
        return dataclasses.replace(otherwise, **{name: given[name] for name in fields if name in given})

    def chosen(given: Mapping[str, Any], *names: str) -> dict[str, Any]:
        return {name: given[name] for name in names if name in given}

    return CLIPConfig(
        text=sizes(text, default.text),
        vision=sizes(vision, default.vision),
        **chosen(text, "vocab_size", "max_position_embeddings", "eos_token_id"),
        **chosen(vision, "image_size", "patch_size"),
        **chosen(published, "projection_dim"),
    )


def _clip_names(config: CLIPConfig) -> dict[str, str]:
    """Our names -> Hugging Face's."""
    text, vision = "text_model.embeddings", "vision_model.embeddings"
    names = {
        "token_embedding": f"{text}.token_embedding.weight",
        "text_positions": f"{text}.position_embedding.weight",
        "text_projection": "text_projection.weight",
        "patch_kernel": f"{vision}.patch_embedding.weight",
        "class_embedding": f"{vision}.class_embedding",
        "image_positions": f"{vision}.position_embedding.weight",
        "image_projection": "visual_projection.weight",
    }
    norms = {
        "text_norm": "text_model.final_layer_norm",
        "image_norm_before": "vision_model.pre_layrnorm",  # so it is spelled
        "image_norm": "vision_model.post_layernorm",
    }
    linears = {}
    layers = {"text": ("text_model", config.text), "image": ("vision_model", config.vision)}
    for ours, (theirs, tower) in layers.items():
        for i in range(tower.num_hidden_layers):
            block, layer = f"{ours}_blocks/{i}", f"{theirs}.encoder.layers.{i}"
            norms |= {f"{block}/norm{n}": f"{layer}.layer_norm{n}" for n in (1, 2)}
            linears |= {f"{block}/fc{n}": f"{layer}.mlp.fc{n}" for n in (1, 2)}
            parts = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
            linears |= {f"{block}/{part}": f"{layer}.self_attn.{name}" for part, name in parts.items()}
    for modules, parameters in ((norms, _NORM), (linears, _LINEAR)):
        for ours, theirs in modules.items():
            names |= {f"{ours}/{here}": f"{theirs}.{there}" for here, there in parameters.items()}
    return names


def _clip_layout(name: str, array: StoredArray) -> StoredArray:
    if name == "patch_kernel" and len(array.shape) == 4:
        return array.transpose(2, 3, 1, 0)
    return array.transpose(1, 0) if name.endswith(("/kernel", "_projection")) and len(array.shape) == 2 else array


def _renamed(stored: Arrays, names: Mapping[str, str]) -> Arrays:
    return {ours: stored[theirs] for ours, theirs in names.items() if theirs in stored}


def _beside(stored: Arrays, names: Mapping[str, str]) -> dict[str, tuple[int, ...] | None]:
    return {name: array.shape for name, array in stored.items() if name not in names.values()}


def _changed(array: StoredArray, change: Callable[[np.ndarray], np.ndarray]) -> StoredArray:
    return StoredArray.in_memory(np.ascontiguousarray(change(array.load())), array.source)


def _build(
    build: Callable[[], Network], found: Arrays, beside: dict[str, tuple[int, ...] | None], path: Path
) -> Network:
    """The network with the weights `found`, in float32 on the default device."""
    report = ImportReport(found, parameter_shapes(build), beside=beside)
    try:
        report.check()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if report.unused:
        unknown = ", ".join(f"{name} {list(shape or ())}" for name, shape in report.unused.items())
        raise ValueError(f"{path}: the weights are not those of this model: it has no place for {unknown}")
    graphdef, _ = nnx.split(nnx.eval_shape(build))
    values = {name: jnp.asarray(array.load(), jnp.float32) for name, array in report.arrays.items()}
    return nnx.merge(graphdef, nested(values))
