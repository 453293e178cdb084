"""The temporal layers once more, in float64 NumPy and from their definitions: what the package is compared with.

`p` is a layer's nested dict of parameters; x and the results are `[batch, frames, height, width, channels]`.
"""

import math

import numpy as np
import scipy.special
from flax import nnx


def parameters(module):
    """The nested dict of a module's parameters."""
    arrays = nnx.traversals.flatten_mapping(nnx.to_pure_dict(nnx.state(module)))
    return nnx.traversals.unflatten_mapping({path: np.asarray(leaf, np.float64) for path, leaf in arrays.items()})


def space_convolution(p, x):
    """Every frame by itself; pixels outside it count as zero."""
    height, width = x.shape[2:4]
    size = len(p["kernel"])
    edge = (size // 2, size // 2)
    padded = np.pad(x, ((0, 0), (0, 0), edge, edge, (0, 0)))
    taps = np.ndindex(size, size)
    return p["bias"] + sum(padded[:, :, i : i + height, j : j + width] @ p["kernel"][i, j] for i, j in taps)


def time_convolution(p, x):
    """Every pixel by itself; frames before the first and after the last count as zero."""
    frames, taps = x.shape[1], len(p["kernel"])
    y = np.zeros((*x.shape[:-1], p["kernel"].shape[-1])) + p["bias"]
    for frame, tap in np.ndindex(frames, taps):
        source = frame + tap - taps // 2
        if 0 <= source < frames:
            y[:, frame] += x[:, source] @ p["kernel"][tap]
    return y


def group_normalisation(p, x, groups):
    """Over the pixels and channels of a group, for each frame by itself."""
    y = np.empty_like(x)
    for clip, frame, channels in np.ndindex(*x.shape[:2], groups):
        width = x.shape[-1] // groups
        group = np.s_[clip, frame, :, :, channels * width : (channels + 1) * width]
        y[group] = (x[group] - x[group].mean()) / np.sqrt(x[group].var() + 1e-5)
    return y * p["scale"] + p["bias"]


def activation(name, x):
    return x * (0.5 + 0.5 * scipy.special.erf(x / math.sqrt(2))) if name == "gelu" else x / (1 + np.exp(-x))


def linear(p, x):
    return x @ p["kernel"] + p["bias"]


def time_attention(p, x, head_dim):
    """Each pixel's frames attend to each other, added to x."""
    y = x.copy()
    for clip, row, column in np.ndindex(x.shape[0], *x.shape[2:4]):
        frames = x[clip, :, row, column]
        normal = (frames - frames.mean(-1, keepdims=True)) / np.sqrt(frames.var(-1, keepdims=True) + 1e-5)
        qkv = linear(p["to_qkv"], normal * p["norm"]["scale"] + p["norm"]["bias"])
        q, k, v = np.split(qkv, 3, axis=-1)
        heads = [np.s_[:, first : first + head_dim] for first in range(0, x.shape[-1], head_dim)]
        attended = np.concatenate([one_head(q[head], k[head], v[head]) for head in heads], axis=-1)
        y[clip, :, row, column] += linear(p["to_out"], attended)
    return y


def one_head(q, k, v):
    """Queries and keys, not values: pairs of channels as complex numbers, turned by the frame times a frequency."""
    frames, width = q.shape
    frequencies = [10_000.0 ** (-2 * pair / width) for pair in range(width // 2)]
    turn = np.exp(1j * np.outer(np.arange(frames), frequencies))
    q, k = ((x[:, 0::2] + 1j * x[:, 1::2]) * turn for x in (q, k))
    weights = np.exp((q @ k.conj().T).real / math.sqrt(width))
    return weights / weights.sum(-1, keepdims=True) @ v


def convolution_block(p, spatial_out, act, groups):
    """Paper Fig. 4b, from the output of the pre-trained spatial layer on."""
    h = space_convolution(p["spatial_conv"], spatial_out)
    h = activation(act, group_normalisation(p["norm_1"], h, groups))
    h = time_convolution(p["temporal_conv"], h)
    h = activation(act, group_normalisation(p["norm_2"], h, groups))
    return spatial_out + linear(p["projection"], h)


def attention_block(p, spatial_out, head_dim):
    """Paper Fig. 4c, from the output of the pre-trained spatial layer on."""
    h = spatial_out
    for layer in range(len(p["attentions"])):
        h = time_attention(p["attentions"][layer], h, head_dim)
    return spatial_out + linear(p["projection"], h)


def down_sampling(p, spatial_out, stride):
    """Appendix B: convolution, then every `stride`-th frame, the first among them."""
    h = time_convolution(p["conv"], spatial_out)
    return np.stack([h[:, frame] for frame in range(h.shape[1]) if frame % stride == 0], axis=1)


def up_sampling(p, spatial_out, stride):
    """Appendix B: every frame `stride` times, then convolution."""
    frames = spatial_out.shape[1] * stride
    return time_convolution(p["conv"], np.stack([spatial_out[:, t // stride] for t in range(frames)], axis=1))
