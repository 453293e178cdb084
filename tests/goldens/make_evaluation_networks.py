"""Makes the goldens of the networks that evaluation looks through, with PyTorch and transformers.

    python -m venv .venv-parity && .venv-parity/bin/pip install '.[parity]'
    .venv-parity/bin/python tests/goldens/make_evaluation_networks.py

`evaluation_networks.safetensors` holds what I3D and C3D, restated here in PyTorch, and transformers' `CLIPModel`
compute for the small models of `evaluation_inputs.py`, how PyTorch resizes, and, as metadata, a small tokenizer.json of
CLIP's kind with its ids of some prompts, CLIP's names and shapes, and the versions of the libraries.
"""

import importlib.metadata
import json
import pathlib
import tempfile

import evaluation_inputs as inputs
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

PATH = pathlib.Path(__file__).with_name("evaluation_networks.safetensors")


def same_padding(x, size, stride):
    """Zeros around [n, c, t, h, w], as TensorFlow's SAME: the odd one behind."""
    pads = []
    for length, k, s in zip(reversed(x.shape[2:]), reversed(size), reversed(stride), strict=True):
        total = max((-(-length // s) - 1) * s + k - length, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)


def max_pool(x, size, stride):
    """Zeros at the border win over nothing: all of this comes from a ReLU."""
    return F.max_pool3d(same_padding(x, size, stride), size, stride)


def run_i3d(state, video):
    """Logits `[n, classes]` of `[n, t, h, w, 3]`."""

    def unit(name, x, stride=1):
        kernel = state[f"{name}.conv3d.weight"]
        x = F.conv3d(same_padding(x, kernel.shape[2:], (stride,) * 3), kernel, stride=stride)
        parts = (state[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.relu(F.batch_norm(x, *parts, eps=1e-3))

    def mixed(name, x):
        pooled = unit(f"{name}.b3b", max_pool(x, (3, 3, 3), (1, 1, 1)))
        first, second = (unit(f"{name}.b{i}b", unit(f"{name}.b{i}a", x)) for i in (1, 2))
        return torch.cat([unit(f"{name}.b0", x), first, second, pooled], 1)

    x = max_pool(unit("Conv3d_1a_7x7", video.permute(0, 4, 1, 2, 3), 2), (1, 3, 3), (1, 2, 2))
    x = max_pool(unit("Conv3d_2c_3x3", unit("Conv3d_2b_1x1", x)), (1, 3, 3), (1, 2, 2))
    for name in inputs.I3D_MODULES:
        if name == "Mixed_4b":
            x = max_pool(x, (3, 3, 3), (2, 2, 2))
        if name == "Mixed_5b":
            x = max_pool(x, (2, 2, 2), (2, 2, 2))
        x = mixed(name, x)
    x = F.avg_pool3d(x, (2, 7, 7), stride=1)
    logits = F.conv3d(x, state["logits.conv3d.weight"], state["logits.conv3d.bias"])
    return logits.squeeze(4).squeeze(3).mean(2)


def run_c3d(state, video):
    """Probabilities `[n, classes]` of `[n, 16, 112, 112, 3]`; pooling rounds up, as Chainer's `cover_all`."""
    x = video.permute(0, 4, 1, 2, 3)
    for name in inputs.C3D_WIDTHS:
        x = F.relu(F.conv3d(x, state[f"{name}/W"], state[f"{name}/b"], padding=1))
        if name not in ("conv3a", "conv4a", "conv5a"):
            x = F.max_pool3d(x, (1, 2, 2) if name == "conv1a" else 2, ceil_mode=True)
    x = x.flatten(1)
    for name in ("fc6", "fc7"):
        x = F.relu(F.linear(x, state[f"{name}/W"], state[f"{name}/b"]))
    return F.linear(x, state["fc8/W"], state["fc8/b"]).softmax(-1)


def torch_weights(shapes):
    """Weights by name as tensors."""
    return {name: torch.from_numpy(array) for name, array in inputs.weights(shapes).items()}


def make_clip(name):
    """Text and image vectors of a small CLIPModel, and its names and shapes."""
    model = CLIPModel(CLIPConfig(**inputs.CLIP[name])).eval()
    shapes = {tensor: tuple(value.shape) for tensor, value in model.state_dict().items()}
    for tensor, value in inputs.weights(shapes).items():
        if not tensor.endswith(("position_ids", "logit_scale")):
            model.state_dict()[tensor].copy_(torch.from_numpy(value))
    pixels = torch.from_numpy(inputs.clip_images()).permute(0, 3, 1, 2)
    out = model(input_ids=torch.from_numpy(inputs.clip_ids(name)), pixel_values=pixels)
    vectors = {f"clip_{name}_texts": out.text_embeds.numpy(), f"clip_{name}_images": out.image_embeds.numpy()}
    return vectors, shapes


def make_tokenizer():
    """A small tokenizer.json of CLIP's kind, and its ids of `PROMPTS`."""
    letters = sorted("abcdehmnopst")
    merges = [("a", "t</w>"), ("c", "at</w>"), ("t", "h"), ("th", "e</w>"), ("o", "n</w>")]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge) for merge in merges)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges)
    ids = tokenizer(inputs.PROMPTS, padding="max_length", truncation=True, max_length=inputs.TOKENS)["input_ids"]
    with tempfile.TemporaryDirectory() as directory:
        tokenizer.save_pretrained(directory)
        return {"tokenizer.json": (pathlib.Path(directory) / "tokenizer.json").read_text(), "ids": ids}


@torch.no_grad()
def main():
    """Writes the golden."""
    arrays = {}
    i3d = torch_weights(inputs.i3d_shapes(inputs.NARROWER, inputs.I3D_CLASSES))
    for frames in inputs.I3D_FRAMES:
        arrays[f"i3d_{frames}"] = run_i3d(i3d, torch.from_numpy(inputs.i3d_video(frames))).numpy()
    c3d = torch_weights(inputs.c3d_shapes(inputs.NARROWER, inputs.C3D_LINEAR, inputs.C3D_CLASSES))
    arrays["c3d"] = run_c3d(c3d, torch.from_numpy(inputs.c3d_video())).numpy()
    picture = torch.from_numpy(inputs.picture()).permute(2, 0, 1)[None].double()
    for name, align_corners in (("half_pixel", False), ("align_corners", True)):
        resized = F.interpolate(picture, (9, 4), mode="bilinear", align_corners=align_corners)
        arrays[f"resized_{name}"] = resized[0].permute(1, 2, 0).numpy()
    shapes = {}
    for name in inputs.CLIP:
        vectors, shapes[name] = make_clip(name)
        arrays |= vectors
    metadata = {"clip_shapes": shapes, "tokenizer": make_tokenizer()}
    metadata["versions"] = {library: importlib.metadata.version(library) for library in ("torch", "transformers")}
    save_file(
        {name: np.ascontiguousarray(array) for name, array in arrays.items()},
        PATH,
        metadata={name: json.dumps(value) for name, value in metadata.items()},
    )
    print(f"{PATH.name}: {PATH.stat().st_size:,} bytes")
    for name, array in arrays.items():
        print(f"  {name} {array.shape}: {array.min():.3g} to {array.max():.3g}, deviation {array.std():.3g}")
    print(metadata["tokenizer"]["ids"])


if __name__ == "__main__":
    main()
