"""The networks of evaluation at small sizes: names, shapes, weights and inputs, alike for the goldens and the tests.

The tables of I3D and C3D are written from the published programs, not from ours: names, and shapes as PyTorch and
Chainer have them.
"""

import golden_inputs
import numpy as np

# Inception modules: channels in, 1x1x1, reduced and 3x3x3 of two branches, behind the pooling.
I3D_MODULES = {
    "Mixed_3b": (192, 64, 96, 128, 16, 32, 32),
    "Mixed_3c": (256, 128, 128, 192, 32, 96, 64),
    "Mixed_4b": (480, 192, 96, 208, 16, 48, 64),
    "Mixed_4c": (512, 160, 112, 224, 24, 64, 64),
    "Mixed_4d": (512, 128, 128, 256, 24, 64, 64),
    "Mixed_4e": (512, 112, 144, 288, 32, 64, 64),
    "Mixed_4f": (528, 256, 160, 320, 32, 128, 128),
    "Mixed_5b": (832, 256, 160, 320, 32, 128, 128),
    "Mixed_5c": (832, 384, 192, 384, 48, 128, 128),
}
C3D_WIDTHS = {"conv1a": 64, "conv2a": 128, "conv3a": 256, "conv3b": 256, "conv4a": 512, "conv4b": 512, "conv5a": 512}
C3D_WIDTHS |= {"conv5b": 512}
NARROWER = 8  # both networks' channels in the goldens are divided by this
C3D_LINEAR = (24, 20)
# 10 frames become 5, 3 and 2: odd lengths, and one time of logits. 20 become 10, 5 and 3: two times.
I3D_FRAMES = (10, 20)
I3D_CLASSES, C3D_CLASSES = 7, 9


def i3d_shapes(narrower=1, classes=400, scale=True):
    """Shapes of the PyTorch state dict by name."""
    units = {"Conv3d_1a_7x7": (3, 64, 7), "Conv3d_2b_1x1": (64, 64, 1), "Conv3d_2c_3x3": (64, 192, 3)}
    for module, (before, one, reduce_1, three_1, reduce_2, three_2, pooled) in I3D_MODULES.items():
        units[f"{module}.b0"] = (before, one, 1)
        units[f"{module}.b1a"], units[f"{module}.b1b"] = (before, reduce_1, 1), (reduce_1, three_1, 3)
        units[f"{module}.b2a"], units[f"{module}.b2b"] = (before, reduce_2, 1), (reduce_2, three_2, 3)
        units[f"{module}.b3b"] = (before, pooled, 1)
    shapes = {}
    for unit, (before, after, size) in units.items():
        channels = 3 if before == 3 else before // narrower
        shapes[f"{unit}.conv3d.weight"] = (after // narrower, channels, size, size, size)
        parts = ("weight",) * scale + ("bias", "running_mean", "running_var")
        shapes |= {f"{unit}.bn.{part}": (after // narrower,) for part in parts}
    return shapes | {
        "logits.conv3d.weight": (classes, 1024 // narrower, 1, 1, 1),
        "logits.conv3d.bias": (classes,),
    }


def c3d_shapes(narrower=1, linear=(4096, 4096), classes=101):
    """Shapes of Chainer's `.npz` by name."""
    shapes, before = {}, 3
    for name, width in C3D_WIDTHS.items():
        shapes |= {f"{name}/W": (width // narrower, before, 3, 3, 3), f"{name}/b": (width // narrower,)}
        before = width // narrower
    for name, after in zip(("fc6", "fc7", "fc8"), (*linear, classes), strict=True):
        before = before * 16 if name == "fc6" else before
        shapes |= {f"{name}/W": (after, before), f"{name}/b": (after,)}
        before = after
    return shapes


def weights(shapes):
    """As `golden_inputs.weight`; variances are positive, and small enough for the epsilon to show."""
    arrays = {}
    for name, shape in shapes.items():
        if name.endswith("running_var"):
            arrays[name] = (0.5 + 0.48 * golden_inputs.uniform(name, shape)).astype(np.float32)
        elif name.endswith(("running_mean", "/b")):
            arrays[name] = np.float32(0.3) * golden_inputs.uniform(name, shape)
        else:
            arrays[name] = golden_inputs.weight(name, shape)
    return arrays


def i3d_video(frames):
    """`[1, frames, 224, 224, 3]` in [-1, 1): noise on smooth waves, so that no layer sees all clips alike."""
    noise = golden_inputs.uniform(f"video of {frames}", (1, frames, 224, 224, 3))
    t, y, x = np.meshgrid(np.arange(frames), np.arange(224), np.arange(224), indexing="ij")
    waves = np.sin(0.9 * t + 0.05 * y)[..., None] * np.cos(0.11 * x[..., None] + np.arange(3))
    return (0.5 * noise + 0.5 * waves[None]).astype(np.float32)


def c3d_video():
    """`[2, 16, 112, 112, 3]`, about as large as levels less their mean."""
    return 2 * golden_inputs.uniform("c3d video", (2, 16, 112, 112, 3))


TEXT = {"hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {"hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 3, "num_attention_heads": 3}
VOCABULARY = 64
TOKENS = 12


def clip_config(eos):
    """Keyword arguments of transformers' CLIPConfig."""
    text = {"vocab_size": VOCABULARY, "max_position_embeddings": TOKENS, "bos_token_id": 1, "eos_token_id": eos}
    return {
        "text_config": TEXT | text,
        "vision_config": VISION | {"image_size": 20, "patch_size": 5, "layer_norm_eps": 1e-3},
        "projection_dim": 10,
    }


# The end of the text is the largest id (an eos_token_id of 2), or has an id that others exceed.
CLIP = {"legacy": clip_config(2), "eos": clip_config(40)}


def clip_ids(name):
    """`[3, 12]`: texts of several lengths, behind whose end there is anything."""
    end = 63 if name == "legacy" else 40
    ids = (3 + (golden_inputs.uniform("clip ids", (3, TOKENS)) + 1) / 2 * 36).astype(np.int64)
    if name == "eos":
        ids[:, 2] = 50
    for row, length in enumerate((4, 11, 7)):
        ids[row, length] = end
    return ids


def clip_images():
    """`[2, 20, 20, 3]`, as normalised."""
    return 2 * golden_inputs.uniform("clip images", (2, 20, 20, 3))


def picture():
    """`[5, 7, 3]`, to be resized."""
    return golden_inputs.uniform("picture", (5, 7, 3))


PROMPTS = ["a cat", "A  Cat on a mat", "cats", "the bat and the cat sat on the mat and on the bat", ""]
