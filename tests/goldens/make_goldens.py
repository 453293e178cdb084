"""Makes the goldens beside it with the real diffusers and transformers.

    python -m venv .venv-parity && .venv-parity/bin/pip install '.[parity]'
    .venv-parity/bin/python tests/goldens/make_goldens.py

Each `unet_<name>.safetensors` holds what diffusers' `UNet2DConditionModel` computes for a model of `golden_inputs.py`
(float32 and float64, with and without a text mask) and, in its metadata, the config.json, every tensor's name and
shape, and the versions of the libraries. `t5.safetensors` holds the output of transformers' `T5EncoderModel`.
"""

import contextlib
import importlib.metadata
import json
import pathlib
from collections.abc import Iterator
from unittest import mock

import golden_inputs
import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from diffusers.utils import logging
from safetensors.numpy import save_file
from transformers import T5Config, T5EncoderModel

DIRECTORY = pathlib.Path(__file__).parent


@contextlib.contextmanager
def repaired_mask() -> Iterator[None]:
    """Pads a mask of the text to all keys, also where diffusers would crash (see `golden_inputs`)."""

    def prepare(
        attention: Attention, text_mask: torch.Tensor | None, pixels: int, *_: object, **__: object
    ) -> torch.Tensor | None:
        appended = 0 if attention.only_cross_attention else pixels
        return None if text_mask is None else torch.nn.functional.pad(text_mask, (0, appended))[:, None]

    with mock.patch.object(Attention, "prepare_attention_mask", prepare):
        yield


def set_weights(model: torch.nn.Module) -> dict[str, list[int]]:
    """Gives every tensor the weight of its name; returns the tensors' shapes."""
    tensors = dict(model.named_parameters())  # each once, where several modules share it
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(torch.from_numpy(golden_inputs.weight(name, tuple(tensor.shape))))
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def run_unet(
    model: UNet2DConditionModel, dtype: torch.dtype, *, masked: bool, tokens: int = golden_inputs.TOKENS
) -> np.ndarray:
    """The model's output `[batch, channels, height, width]`."""
    sample, text = golden_inputs.inputs(model.config.in_channels, model.config.encoder_hid_dim, tokens)
    levels = torch.from_numpy(golden_inputs.NOISE_LEVEL) if model.config.class_embed_type else None
    with torch.no_grad():
        out = model.to(dtype)(
            torch.from_numpy(sample).to(dtype),
            torch.from_numpy(golden_inputs.TIMESTEP),
            torch.from_numpy(text).to(dtype),
            class_labels=levels,
            encoder_attention_mask=torch.from_numpy(golden_inputs.mask(tokens)) if masked else None,
        )
    return out.sample.numpy()


def make_unet(name: str) -> None:
    """Writes `unet_<name>.safetensors`."""
    given = golden_inputs.UNETS[name]
    model = UNet2DConditionModel(**given).eval()
    shapes = set_weights(model)
    arrays = {}
    for suffix, dtype in (("", torch.float32), ("_f64", torch.float64)):
        with repaired_mask() if given.get("only_cross_attention") else contextlib.nullcontext():
            arrays[f"out{suffix}"] = run_unet(model, dtype, masked=False)
            arrays[f"out_masked{suffix}"] = run_unet(model, dtype, masked=True)
    if name == "stage_1":
        with repaired_mask():
            tokens = golden_inputs.PIXELS_OF_THE_COARSEST_LEVEL
            arrays["out_masked_as_many_tokens_as_pixels"] = run_unet(model, torch.float32, masked=True, tokens=tokens)
    # An older config.json has only the keys that its diffusers knew.
    config = given | {"_class_name": "UNet2DConditionModel"} if name == "older" else json.loads(model.to_json_string())
    write(f"unet_{name}", arrays, {"config.json": config, "shapes": shapes}, ("diffusers", "torch"))


def make_t5() -> None:
    """Writes `t5.safetensors`."""
    model = T5EncoderModel(T5Config(**golden_inputs.T5)).eval()
    shapes = set_weights(model)
    ids, mask = map(torch.from_numpy, golden_inputs.t5_tokens())
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=mask).last_hidden_state.numpy()
    write("t5", {"last_hidden_state": out}, {"shapes": shapes}, ("transformers", "torch"))


def write(name: str, arrays: dict[str, np.ndarray], metadata: dict, libraries: tuple[str, ...]) -> None:
    """Writes a golden with the versions that made it."""
    metadata = metadata | {"versions": {library: importlib.metadata.version(library) for library in libraries}}
    path = DIRECTORY / f"{name}.safetensors"
    save_file(
        {key: np.ascontiguousarray(array) for key, array in arrays.items()},
        path,
        metadata={key: json.dumps(value) for key, value in metadata.items()},
    )
    spread = {key: round(float(array.std()), 3) for key, array in arrays.items()}
    print(f"{path.name}: {path.stat().st_size:,} bytes, standard deviations {spread}")


if __name__ == "__main__":
    logging.set_verbosity_error()  # it warns of every cast to float64
    for unet in golden_inputs.UNETS:
        make_unet(unet)
    make_t5()
