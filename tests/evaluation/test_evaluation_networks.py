"""I3D, C3D and CLIP against PyTorch, transformers and Pillow, from files in the published names and layouts."""

import functools
import json
import math
import pathlib
import sys
import zipfile

import evaluation_inputs as inputs
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import save_file

from lumiere_jax.checkpoints import evaluation_networks
from lumiere_jax.checkpoints.import_report import parameter_shapes
from lumiere_jax.models.c3d import C3D, C3DConfig
from lumiere_jax.models.clip import CLIP, CLIPConfig, prepare_images
from lumiere_jax.models.i3d import I3D, I3DConfig
from lumiere_jax.text.clip_tokenizer import CLIPTokenizer

GOLDEN = pathlib.Path(inputs.__file__).with_name("evaluation_networks.safetensors")
I3D_CONFIG = I3DConfig(classes=inputs.I3D_CLASSES).narrowed(inputs.NARROWER)
C3D_CONFIG = C3DConfig(tuple(w // inputs.NARROWER for w in inputs.C3D_WIDTHS.values()), inputs.C3D_LINEAR, 9)
TOLERANCE = 2e-6  # of the largest value; found: I3D 5e-7, C3D 5e-7, CLIP 4e-7


@functools.cache
def golden():
    with safe_open(GOLDEN, framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
        return arrays, {name: json.loads(value) for name, value in file.metadata().items()}


def assert_close(ours, name):
    theirs = golden()[0][name]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE * np.abs(theirs).max())


def i3d_weights(*, scale=True):
    return inputs.weights(inputs.i3d_shapes(inputs.NARROWER, inputs.I3D_CLASSES, scale))


def c3d_weights():
    return inputs.weights(inputs.c3d_shapes(inputs.NARROWER, inputs.C3D_LINEAR, inputs.C3D_CLASSES))


def clip_directory(path, name, **changes):
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({"model_type": "clip"} | inputs.CLIP[name] | changes))
    weights = inputs.weights({name: tuple(shape) for name, shape in golden()[1]["clip_shapes"][name].items()})
    save_file({name: np.asarray(array) for name, array in weights.items()}, path / "model.safetensors")
    return path


@pytest.fixture(scope="module")
def i3d(tmp_path_factory):
    path = tmp_path_factory.mktemp("i3d") / "i3d.safetensors"
    counters = {"Mixed_3b.b0.bn.num_batches_tracked": np.zeros((), np.int64)}
    save_file(i3d_weights() | counters, path)
    return evaluation_networks.load_i3d(path, I3D_CONFIG)


@pytest.mark.parametrize("frames", inputs.I3D_FRAMES)
def test_i3d_is_pytorchs(i3d, frames):
    assert_close(nnx.jit(lambda network, video: network(video))(i3d, inputs.i3d_video(frames)), f"i3d_{frames}")


def test_i3d_wants_enough_frames(i3d):
    with pytest.raises(ValueError, match="clips of 8 frames: I3D needs 9 or more"):
        i3d(jnp.zeros((1, 8, 224, 224, 3)))
    shape = jax.ShapeDtypeStruct((1, 9, 224, 224, 3), jnp.float32)
    assert nnx.eval_shape(lambda video: i3d(video), shape).shape == (1, 7)


def test_c3d_is_pytorchs(tmp_path):
    np.savez(tmp_path / "c3d.npz", **c3d_weights())
    c3d = evaluation_networks.load_c3d(tmp_path / "c3d.npz", C3D_CONFIG)
    assert_close(nnx.jit(lambda network, video: network(video))(c3d, inputs.c3d_video()), "c3d")


@pytest.mark.parametrize("name", ["legacy", "eos"])
def test_clip_is_transformers(tmp_path, name):
    clip = evaluation_networks.load_clip(clip_directory(tmp_path / name, name))
    ids, images = jnp.asarray(inputs.clip_ids(name), jnp.int32), jnp.asarray(inputs.clip_images())
    assert_close(nnx.jit(lambda network, ids: network.embed_texts(ids))(clip, ids), f"clip_{name}_texts")
    assert_close(nnx.jit(lambda network, images: network.embed_images(images))(clip, images), f"clip_{name}_images")


def test_what_follows_the_end_of_a_text_is_not_seen(tmp_path):
    clip = evaluation_networks.load_clip(clip_directory(tmp_path, "legacy"))
    ids = jnp.asarray(inputs.clip_ids("legacy"), jnp.int32)[:1]
    np.testing.assert_array_equal(clip.embed_texts(ids), clip.embed_texts(ids.at[:, 5:].set(7)))


def test_tokenizer_is_transformers(tmp_path):
    made = golden()[1]["tokenizer"]
    (tmp_path / "tokenizer.json").write_text(made["tokenizer.json"])
    tokenizer = CLIPTokenizer.load(tmp_path)
    np.testing.assert_array_equal(tokenizer.encode(inputs.PROMPTS, inputs.TOKENS), made["ids"])
    (tmp_path / "tokenizer.json").write_text(made["tokenizer.json"].replace("<|endoftext|>", "<|other|>"))
    with pytest.raises(ValueError, match=r"has no token <\|endoftext\|>"):
        CLIPTokenizer.load(tmp_path)


def test_tokenizer_that_cannot_be_loaded(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json does not exist"):
        CLIPTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"pip install 'lumiere-jax\[clip\]'"):
        CLIPTokenizer.load(tmp_path)


@pytest.mark.parametrize("shape", [(300, 300), (150, 301), (260, 200)])
def test_images_are_prepared_as_pillow_does(shape):
    """Larger and smaller ones, upright and wide: the shorter side becomes 224, the middle is kept."""
    y, x = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    phase = 0.4 * x[..., None] + 0.13 * y[..., None] * np.arange(1, 4)
    image = (0.2 * np.sin(phase) + 0.2 * np.random.default_rng(0).uniform(-1, 1, phase.shape)).astype(np.float32)
    size = (224, 224 * shape[1] // shape[0]) if shape[0] < shape[1] else (224 * shape[0] // shape[1], 224)
    top, left = (size[0] - 224) // 2, (size[1] - 224) // 2
    channels = [
        np.asarray(PIL.Image.fromarray(image[..., i]).resize(size[::-1], PIL.Image.Resampling.BICUBIC))
        for i in range(3)
    ]
    pixels = np.stack(channels, -1)[top : top + 224, left : left + 224] / 2 + 0.5
    expected = (pixels - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711]
    np.testing.assert_allclose(prepare_images(jnp.asarray(image)[None])[0], expected, atol=2e-5)


def test_images_stay_within_their_range():
    """Bicubic resizing overshoots beside edges."""
    image = jnp.where(jnp.arange(64)[:, None, None] < 32, -1.0, 1.0) * jnp.ones((64, 64, 3))
    red = prepare_images(image[None])[..., 0] * 0.26862954 + 0.48145466
    assert float(red.min()) == pytest.approx(0, abs=1e-6)
    assert float(red.max()) == pytest.approx(1, abs=1e-6)


def parameters(build, without=()):
    return sum(math.prod(shape) for name, shape in parameter_shapes(build).items() if not name.endswith(without))


def test_full_size_i3d():
    """12,697,264 numbers are trained in the PyTorch packaging: 7,280 of them are scales, which we have no place for."""
    assert parameters(lambda: I3D(I3DConfig(), rngs=nnx.Rngs(0)), ("mean", "variance")) == 12_697_264 - 7_280
    published = inputs.i3d_shapes()
    assert sum(math.prod(shape) for name, shape in published.items() if "running" not in name) == 12_697_264
    assert sum(math.prod(shape) for name, shape in published.items() if name.endswith("bn.weight")) == 7_280
    clips = jax.ShapeDtypeStruct((2, 80, 224, 224, 3), jnp.float32)
    out = nnx.eval_shape(lambda videos: I3D(I3DConfig(classes=600), rngs=nnx.Rngs(0))(videos), clips)
    assert out.shape == (2, 600)


def test_full_size_c3d_and_clip():
    assert parameters(lambda: C3D(C3DConfig(), rngs=nnx.Rngs(0))) == 78_409_573
    assert sum(math.prod(shape) for shape in inputs.c3d_shapes().values()) == 78_409_573
    # transformers counts the temperature too
    assert parameters(lambda: CLIP(CLIPConfig(), rngs=nnx.Rngs(0))) == 151_277_313 - 1


def test_full_size_names(tmp_path):
    """The published names and shapes of I3D all have their place."""
    shapes = inputs.i3d_shapes()
    np.savez(tmp_path / "i3d.npz", **{name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()})
    evaluation_networks.load_i3d(tmp_path / "i3d.npz")
    with pytest.raises(ValueError, match=r"logits  \[1024, 400\] in the file, \[1024, 600\] in the model"):
        evaluation_networks.load_i3d(tmp_path / "i3d.npz", I3DConfig(classes=600))


def test_i3d_without_scales(tmp_path, i3d):
    """Scales of one, or none at all, are the same network."""
    with_ones = i3d_weights()
    with_ones = {name: np.ones_like(a) if name.endswith("bn.weight") else a for name, a in with_ones.items()}
    np.savez(tmp_path / "ones.npz", **with_ones)
    save_file(i3d_weights(scale=False), tmp_path / "none.safetensors")
    ones = evaluation_networks.load_i3d(tmp_path / "ones.npz", I3D_CONFIG)
    none = evaluation_networks.load_i3d(tmp_path / "none.safetensors", I3D_CONFIG)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(ones), nnx.state(none))


def renamed(weights, old, new):
    return {name.replace(old, new): array for name, array in weights.items()}


def reshaped(weights, name, shape):
    return weights | {name: np.zeros(shape, np.float32)}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda w: renamed(w, "Mixed_4d.b2a.conv3d", "Mixed_4d.b2a.conv"), r"missing in the file: 1\n.*4/2/b2a/kernel"),
        (lambda w: w | {"extra.weight": np.zeros(2, np.float32)}, r"no place for extra.weight \[2\]"),
        (lambda w: reshaped(w, "Mixed_3b.b0.bn.bias", (3,)), r"3/0/b0/bias  \[3\] in the file, \[8\] in the model"),
        (lambda w: reshaped(w, "logits.conv3d.bias", (600,)), r"logits_bias  \[600\] in the file, \[7\] in the model"),
        (lambda w: w | {"logits.conv3d.bias": np.zeros(7, np.int8)}, r"not stored as float32"),
    ],
)
def test_i3d_files_that_are_refused(tmp_path, damage, message):
    save_file(damage(i3d_weights()), tmp_path / "i3d.safetensors")
    with pytest.raises(ValueError, match=message):
        evaluation_networks.load_i3d(tmp_path / "i3d.safetensors", I3D_CONFIG)


def test_c3d_files_that_are_refused(tmp_path):
    weights = c3d_weights()
    del weights["fc8/b"]
    np.savez(tmp_path / "c3d.npz", **weights)
    with pytest.raises(ValueError, match=r"missing in the file: 1\n.*fc8/bias"):
        evaluation_networks.load_c3d(tmp_path / "c3d.npz", C3D_CONFIG)


def test_clips_that_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist"):
        evaluation_networks.load_clip(tmp_path)
    text = inputs.CLIP["legacy"]["text_config"] | {"hidden_act": "gelu"}
    with pytest.raises(ValueError, match=r"text_config.hidden_act='gelu': only 'quick_gelu' is known"):
        evaluation_networks.load_clip(clip_directory(tmp_path, "legacy", text_config=text))
    with pytest.raises(ValueError, match="model_type='siglip', not 'clip'"):
        evaluation_networks.load_clip(clip_directory(tmp_path, "legacy", model_type="siglip"))
    text = inputs.CLIP["legacy"]["text_config"] | {"vocab_size": 65}
    with pytest.raises(ValueError, match=r"token_embedding  \[64, 16\] in the file, \[65, 16\] in the model"):
        evaluation_networks.load_clip(clip_directory(tmp_path, "legacy", text_config=text))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        evaluation_networks.load_clip(tmp_path)


def test_config_json_as_published():
    """What OpenAI's ViT-B/32 says that matters here, among much else; an older file says less."""
    published = {
        "model_type": "clip",
        "projection_dim": 512,
        "text_config": {"eos_token_id": 2, "hidden_act": "quick_gelu", "hidden_size": 512, "vocab_size": 49408},
        "vision_config": {"hidden_size": 768, "image_size": 224, "patch_size": 32, "num_attention_heads": 12},
    }
    assert evaluation_networks.clip_config(published) == CLIPConfig()
    assert evaluation_networks.clip_config({"model_type": "clip", "text_config": None}) == CLIPConfig()
    large = published | {"projection_dim": 768, "vision_config": {"hidden_size": 1024, "num_hidden_layers": 24}}
    assert evaluation_networks.clip_config(large).vision.num_hidden_layers == 24
    assert evaluation_networks.clip_config(large).projection_dim == 768


def test_files_that_are_refused(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"none\.npz does not exist"):
        evaluation_networks.read_arrays(tmp_path / "none.npz")
    for name, message in (("a.npz", "damaged"), ("a.h5", r"weights are read from \.safetensors, \.npz")):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(ValueError, match=message):
            evaluation_networks.read_arrays(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "i3d_torchscript.pt", "w") as archive:
        archive.writestr("i3d_torchscript/constants.pkl", b"")
    with pytest.raises(ValueError, match="is a TorchScript archive"):
        evaluation_networks.read_arrays(tmp_path / "i3d_torchscript.pt")
    (tmp_path / "i3d.pt").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="`pip install torch`"):
        evaluation_networks.read_arrays(tmp_path / "i3d.pt")


def test_state_dicts_of_pytorch(tmp_path):
    torch = pytest.importorskip("torch")
    weights = {name: torch.from_numpy(np.array(array)) for name, array in i3d_weights().items()}
    torch.save(weights, tmp_path / "i3d.pt")
    found = evaluation_networks.read_arrays(tmp_path / "i3d.pt")
    for name, array in i3d_weights().items():
        np.testing.assert_array_equal(found[name].load(), array)
    torch.save({"state_dict": weights}, tmp_path / "nested.pth")
    with pytest.raises(ValueError, match="is no state dict"):
        evaluation_networks.read_arrays(tmp_path / "nested.pth")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "i3d.pt").read_bytes()[:1000])
    with pytest.raises(ValueError, match="is damaged"):
        evaluation_networks.read_arrays(tmp_path / "cut.pt")
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "script.pt")
    with pytest.raises(ValueError, match="is a TorchScript archive"):
        evaluation_networks.read_arrays(tmp_path / "script.pt")
