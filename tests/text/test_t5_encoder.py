"""The encoder against T5X's own output, and against a float64 computation in plain numpy."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util

from lumiere_jax.text.load_t5 import encoder_from_parameters
from lumiere_jax.text.t5_encoder import T5_SIZES, T5Config, T5Encoder, relative_position_buckets
from lumiere_jax.text.t5x_checkpoint import read_t5x_encoder

TINY = T5Config(vocab_size=40, emb_dim=16, num_heads=2, num_layers=2, head_dim=6, mlp_dim=20)
UMT5 = T5Config(
    vocab_size=40, emb_dim=16, num_heads=2, num_layers=2, head_dim=6, mlp_dim=20, shared_position_bias=False
)
TOKENS = np.random.default_rng(0).integers(2, 40, (3, 26)).astype(np.int32)
TOKENS[1, 7:] = 0
TOKENS[2, 1:] = 0


def random_parameters(config: T5Config) -> dict:
    """Parameters with all norm scales off 1 and a mean off 0, so that no term of the computation is trivial."""
    shapes = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: T5Encoder(config, rngs=nnx.Rngs(0)))))
    rng = np.random.default_rng(1)

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        spread = leaf.shape[0] ** -0.5 if len(leaf.shape) == 2 else 0.3
        return (spread * rng.normal(size=leaf.shape) + (len(leaf.shape) == 1)).astype(np.float32)

    parameters = jax.tree.map(draw, shapes)
    parameters["token_embedder"]["embedding"] = (rng.normal(size=(config.vocab_size, config.emb_dim)) + 0.5).astype("f")
    return parameters


def reference_bucket(relative: int) -> int:
    """In whole numbers: distance >= 8 * 16^(j/8) is distance^2 >= 64 * 2^j."""
    distance, later = abs(relative), 16 * (relative > 0)
    if distance < 8:
        return later + distance
    return later + 8 + max(j for j in range(8) if distance**2 >= 64 * 2**j)


def reference_encoder(
    parameters: dict, tokens: np.ndarray, mask: np.ndarray, padding_sees_tokens: bool = False
) -> np.ndarray:
    """T5 1.1's encoder in float64, one sentence, one head and one query at a time."""
    p = {k: v.astype(np.float64) for k, v in traverse_util.flatten_dict(parameters, sep="/").items()}

    def norm(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x * x).sum(-1, keepdims=True) / x.shape[-1] + 1e-6) * scale

    def gelu(x: np.ndarray) -> np.ndarray:
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    def attention(x: np.ndarray, valid: np.ndarray, layer: str) -> np.ndarray:
        shared = "encoder/relpos_bias/rel_embedding"
        bias = p[shared] if shared in p else p[f"{layer}/relpos_bias/rel_embedding"]
        heads = bias.shape[0]
        q, k, v = (np.split(x @ p[f"{layer}/attention/{name}/kernel"], heads, -1) for name in ("query", "key", "value"))
        mixed = [np.zeros_like(head) for head in q]
        for h in range(heads):
            for i in range(len(x)):
                logits = [q[h][i] @ k[h][j] + bias[h, reference_bucket(j - i)] for j in range(len(x))]
                logits = [
                    logit if (valid[i] or padding_sees_tokens) and valid[j] else -1e10 for j, logit in enumerate(logits)
                ]
                weights = np.exp(np.array(logits) - max(logits))
                mixed[h][i] = weights / weights.sum() @ v[h]
        return np.concatenate(mixed, -1) @ p[f"{layer}/attention/out/kernel"]

    outputs = []
    for ids, valid in zip(tokens, mask, strict=True):
        x = p["token_embedder/embedding"][ids]
        for i in range(len({name.split("/")[1] for name in p if "/layers_" in name})):
            layer = f"encoder/layers_{i}"
            x = x + attention(norm(x, p[f"{layer}/pre_attention_layer_norm/scale"]), valid, layer)
            y = norm(x, p[f"{layer}/pre_mlp_layer_norm/scale"])
            gated = gelu(y @ p[f"{layer}/mlp/wi_0/kernel"]) * (y @ p[f"{layer}/mlp/wi_1/kernel"])
            x = x + gated @ p[f"{layer}/mlp/wo/kernel"]
        outputs.append(norm(x, p["encoder/encoder_norm/scale"]))
    return np.stack(outputs)


@functools.partial(jax.jit, static_argnames="padding_sees_tokens")
def encode(
    encoder: T5Encoder, tokens: jax.Array, mask: jax.Array | None = None, padding_sees_tokens: bool = False
) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        return encoder(tokens, mask, padding_sees_tokens=padding_sees_tokens)


@pytest.mark.parametrize(
    ("config", "padding_sees_tokens"), [(TINY, False), (TINY, True), (UMT5, False)], ids=["t5x", "hugging_face", "umt5"]
)
def test_float64_reference(config, padding_sees_tokens):
    parameters = random_parameters(config)
    output = encode(encoder_from_parameters(parameters), TOKENS, padding_sees_tokens=padding_sees_tokens)
    expected = reference_encoder(parameters, TOKENS, TOKENS > 0, padding_sees_tokens)
    assert np.abs(expected).mean() > 0.5
    np.testing.assert_allclose(output, expected, atol=1e-5, rtol=1e-5)


def test_padded_rows():
    """T5X's are one and the same vector; Hugging Face's differ from row to row, and do not depend on the length."""
    encoder = encoder_from_parameters(random_parameters(TINY))
    t5x = encode(encoder, TOKENS)
    np.testing.assert_allclose(t5x[1, 8:], jnp.broadcast_to(t5x[1, 7], (18, 16)), atol=1e-5)
    hugging_face = encode(encoder, TOKENS, padding_sees_tokens=True)
    assert np.abs(hugging_face[1, 8:] - hugging_face[1, 7]).max() > 0.1
    np.testing.assert_allclose(hugging_face[0], t5x[0], atol=1e-5)
    np.testing.assert_allclose(hugging_face[1, :7], t5x[1, :7], atol=1e-5)
    shorter = encode(encoder, TOKENS[:, :12], padding_sees_tokens=True)
    np.testing.assert_allclose(hugging_face[1, :12], shorter[1], atol=1e-5)


def test_mask_overrules_the_tokens():
    """A mask that hides tokens in the middle, with a padding id (0) that is shown."""
    parameters = random_parameters(TINY)
    mask = (np.arange(26)[None] % 5 != np.arange(3)[:, None]).astype(np.int32)
    output = encode(encoder_from_parameters(parameters), TOKENS, mask)
    np.testing.assert_allclose(output, reference_encoder(parameters, TOKENS, mask > 0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "checkpoint"), [("t5x_checkpoint", "checkpoint_1000000"), ("t5x_checkpoint_scanned", "checkpoint_5")]
)
def test_t5x_output(fixtures, name, checkpoint):
    """What T5X itself computes, and Hugging Face's T5, at padded positions too."""
    expected = np.load(fixtures / name / "expected.npz")
    encoder = encoder_from_parameters(read_t5x_encoder(fixtures / name / "ckpt" / checkpoint))
    assert encoder.config.shared_position_bias == (name == "t5x_checkpoint")
    assert (expected["mask"] == 0).any()
    output = encode(encoder, expected["tokens"])
    np.testing.assert_allclose(output, expected["encoder_output"], atol=1e-5, rtol=1e-5)
    if name == "t5x_checkpoint":
        hugging_face = np.load(fixtures / name / "expected_hf.npz")["last_hidden_state"]
        output = encode(encoder, expected["tokens"], padding_sees_tokens=True)
        np.testing.assert_allclose(output, hugging_face, atol=1e-5, rtol=1e-5)


def test_buckets_change_where_they_should():
    row = relative_position_buckets(400)[200]
    forward, backward = row[201:], row[200::-1]
    changes = [0, *range(1, 8), 8, 12, 16, 23, 32, 46, 64, 91]
    expected_backward = np.searchsorted(changes, np.arange(201), side="right") - 1
    np.testing.assert_array_equal(backward, expected_backward)
    np.testing.assert_array_equal(forward, 16 + expected_backward[1:200])
    np.testing.assert_array_equal(row, [reference_bucket(k - 200) for k in range(400)])


def test_buckets_of_t5x(fixtures):
    expected = np.load(fixtures / "t5x_checkpoint" / "expected.npz")
    buckets = relative_position_buckets(300)
    found = [buckets[max(0, -relative), max(0, relative)] for relative in expected["rel_pos"]]
    np.testing.assert_array_equal(found, expected["rel_bucket"])


def test_parameter_names_and_shapes_are_t5x():
    state = nnx.state(nnx.eval_shape(lambda: T5Encoder(TINY, rngs=nnx.Rngs(0))))
    found = {k: v.shape for k, v in traverse_util.flatten_dict(nnx.to_pure_dict(state), sep="/").items()}
    expected = {
        "token_embedder/embedding": (40, 16),
        "encoder/relpos_bias/rel_embedding": (2, 32),
        "encoder/encoder_norm/scale": (16,),
    }
    for i in range(2):
        expected |= {
            f"encoder/layers_{i}/pre_attention_layer_norm/scale": (16,),
            f"encoder/layers_{i}/attention/query/kernel": (16, 12),
            f"encoder/layers_{i}/attention/key/kernel": (16, 12),
            f"encoder/layers_{i}/attention/value/kernel": (16, 12),
            f"encoder/layers_{i}/attention/out/kernel": (12, 16),
            f"encoder/layers_{i}/pre_mlp_layer_norm/scale": (16,),
            f"encoder/layers_{i}/mlp/wi_0/kernel": (16, 20),
            f"encoder/layers_{i}/mlp/wi_1/kernel": (16, 20),
            f"encoder/layers_{i}/mlp/wo/kernel": (20, 16),
        }
    assert found == expected


def test_padding_does_not_reach_the_tokens():
    encoder = encoder_from_parameters(random_parameters(TINY))
    short = encode(encoder, TOKENS[1:2, :7])
    np.testing.assert_allclose(encode(encoder, TOKENS)[1:2, :7], short, atol=1e-5, rtol=1e-5)


def test_an_id_beyond_the_vocabulary_is_nan():
    tokens = TOKENS.copy()
    tokens[0, 3] = 40
    output = encode(encoder_from_parameters(random_parameters(TINY)), tokens)
    assert np.isnan(output[0]).all()
    assert np.isfinite(output[1:]).all()


def test_bfloat16_is_near_float32_and_says_so():
    parameters = random_parameters(TINY)
    exact = encode(encoder_from_parameters(parameters), TOKENS)
    halved = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), parameters)
    output = encode(encoder_from_parameters(halved, jnp.bfloat16), TOKENS)
    assert output.dtype == jnp.bfloat16
    error = np.abs(output.astype(jnp.float32) - exact)
    assert 1e-4 < error.mean() < 0.03 * np.abs(exact).mean()


def test_initialisation_and_gradients():
    """Fresh parameters have T5X's spread, and every one of them is trained."""
    wide = T5Config(vocab_size=500, emb_dim=64, num_heads=4, num_layers=1, head_dim=16, mlp_dim=96)
    graph, _ = nnx.split(nnx.eval_shape(lambda: T5Encoder(wide, rngs=nnx.Rngs(0))))
    parameters = jax.jit(lambda: nnx.state(T5Encoder(wide, rngs=nnx.Rngs(0))))()
    flat = traverse_util.flatten_dict(nnx.to_pure_dict(parameters), sep="/")
    layer = "encoder/layers_0"
    for name, spread in {
        "token_embedder/embedding": 1.0,
        f"{layer}/attention/query/kernel": (64 * 16) ** -0.5,
        f"{layer}/attention/key/kernel": 64**-0.5,
        f"{layer}/attention/out/kernel": 64**-0.5,
        f"{layer}/mlp/wi_0/kernel": 64**-0.5,
        f"{layer}/mlp/wo/kernel": 96**-0.5,
    }.items():
        assert float(flat[name].std()) == pytest.approx(spread, rel=0.05), name

    def loss(parameters: nnx.State) -> jax.Array:
        return jnp.square(nnx.merge(graph, parameters)(TOKENS)[..., :5]).sum()

    gradients = traverse_util.flatten_dict(nnx.to_pure_dict(jax.jit(jax.grad(loss))(parameters)), sep="/")
    for name, gradient in gradients.items():
        assert np.isfinite(gradient).all(), name
        assert np.abs(gradient).max() > 0, name


@pytest.mark.parametrize(("size", "millions"), [("small", 35.33), ("xxl", 4762.31)])
def test_published_sizes(size, millions):
    """The number of parameters of Hugging Face's T5EncoderModel of google/t5-v1_1-*."""
    encoder = nnx.eval_shape(lambda: T5Encoder(T5_SIZES[size], rngs=nnx.Rngs(0)))
    parameters = nnx.to_pure_dict(nnx.state(encoder))
    assert sum(leaf.size for leaf in jax.tree.leaves(parameters)) / 1e6 == pytest.approx(millions, abs=0.006)
    assert T5Config.from_parameters(parameters) == T5_SIZES[size]


@pytest.mark.parametrize("config", [TINY, UMT5], ids=["t5", "umt5"])
def test_config_from_parameters(config):
    assert T5Config.from_parameters(random_parameters(config)) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 0}, "num_heads=0 must be positive"),
        ({"num_buckets": 30}, "num_buckets=30 must be a multiple of 4"),
        ({"max_distance": 8}, "max_distance=8 must exceed"),
    ],
)
def test_bad_config(change, message):
    with pytest.raises(ValueError, match=message):
        T5Config(
            **{"vocab_size": 8, "emb_dim": 4, "num_heads": 1, "num_layers": 1, "head_dim": 4, "mlp_dim": 4} | change
        )


def test_bad_parameter_trees():
    first_t5 = random_parameters(TINY)
    mlp = first_t5["encoder"]["layers_0"]["mlp"]
    mlp["wi"] = mlp.pop("wi_0")
    with pytest.raises(ValueError, match=re.escape("no encoder/layers_0/mlp/wi_0/kernel")):
        T5Config.from_parameters(first_t5)
    hole = random_parameters(TINY)
    del hole["encoder"]["layers_1"]["mlp"]["wo"]
    hole["encoder"]["layers_1"]["attention"]["key"]["kernel"] = np.zeros((16, 13), np.float32)
    with pytest.raises(ValueError, match="do not fit") as error:
        encoder_from_parameters(hole)
    assert "layers_1/mlp/wo/kernel: expected (20, 16), found nothing" in str(error.value)
    assert "layers_1/attention/key/kernel: expected (16, 12), found (16, 13)" in str(error.value)
