"""T5 in safetensors: names, transposes, shards, and files that are not whole."""

import json
import re

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

from lumiere_jax.text.hugging_face_t5 import is_hugging_face_t5, open_hugging_face_t5, read_hugging_face_t5
from lumiere_jax.text.t5x_checkpoint import read_t5x_encoder

BIAS = "layer.0.SelfAttention.relative_attention_bias.weight"


def tensors(dtype=np.float32, layers: int = 2) -> dict[str, np.ndarray]:
    """A T5 encoder as Hugging Face stores it: [outputs, inputs], all sizes different."""
    rng = np.random.default_rng(0)
    shapes = {
        "shared.weight": (11, 4),
        f"encoder.block.0.{BIAS}": (8, 2),
        "encoder.final_layer_norm.weight": (4,),
        "decoder.block.0.layer.0.SelfAttention.q.weight": (6, 4),
    }
    for i in range(layers):
        block = f"encoder.block.{i}"
        shapes |= {f"{block}.layer.0.SelfAttention.{name}.weight": (6, 4) for name in "qkv"}
        shapes |= {f"{block}.layer.1.DenseReluDense.{name}.weight": (7, 4) for name in ("wi_0", "wi_1")}
        shapes |= {f"{block}.layer.{j}.layer_norm.weight": (4,) for j in range(2)}
        shapes[f"{block}.layer.0.SelfAttention.o.weight"] = (4, 6)
        shapes[f"{block}.layer.1.DenseReluDense.wo.weight"] = (4, 7)
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def expected_tree(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The table of correspondences, written out."""
    tree = {
        "token_embedder/embedding": weights["shared.weight"],
        "encoder/relpos_bias/rel_embedding": weights[f"encoder.block.0.{BIAS}"].T,
        "encoder/encoder_norm/scale": weights["encoder.final_layer_norm.weight"],
    }
    for i in range(2):
        theirs, ours = f"encoder.block.{i}", f"encoder/layers_{i}"
        for t5x, name in {"query": "q", "key": "k", "value": "v", "out": "o"}.items():
            tree[f"{ours}/attention/{t5x}/kernel"] = weights[f"{theirs}.layer.0.SelfAttention.{name}.weight"].T
        for name in ("wi_0", "wi_1", "wo"):
            tree[f"{ours}/mlp/{name}/kernel"] = weights[f"{theirs}.layer.1.DenseReluDense.{name}.weight"].T
        tree[f"{ours}/pre_attention_layer_norm/scale"] = weights[f"{theirs}.layer.0.layer_norm.weight"]
        tree[f"{ours}/pre_mlp_layer_norm/scale"] = weights[f"{theirs}.layer.1.layer_norm.weight"]
    return tree


def assert_same(found: dict, expected: dict[str, np.ndarray]) -> None:
    found = traverse_util.flatten_dict(found, sep="/")
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def save_sharded(path, weights: dict[str, np.ndarray], shards: int = 3, index: str = "model.safetensors.index.json"):
    names = sorted(weights)
    files = {f"model-{i}.safetensors": names[i::shards] for i in range(shards)}
    for file, inside in files.items():
        safetensors.numpy.save_file({name: weights[name] for name in inside}, path / file)
    weight_map = {name: file for file, inside in files.items() for name in inside}
    (path / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_single_file_and_directory(tmp_path, dtype):
    weights = tensors(dtype)
    safetensors.numpy.save_file(weights, tmp_path / "model.safetensors")
    assert is_hugging_face_t5(tmp_path)
    assert_same(read_hugging_face_t5(tmp_path / "model.safetensors"), expected_tree(weights))
    assert_same(read_hugging_face_t5(tmp_path), expected_tree(weights))


def test_shards(tmp_path):
    weights = tensors()
    save_sharded(tmp_path, weights)
    assert_same(read_hugging_face_t5(tmp_path), expected_tree(weights))
    assert_same(read_hugging_face_t5(str(tmp_path / "model.safetensors.index.json")), expected_tree(weights))


def test_a_shard_of_the_decoder_may_be_absent(tmp_path):
    weights = tensors()
    save_sharded(tmp_path, weights)
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] |= {"decoder.final_layer_norm.weight": "model-9.safetensors", "lm_head.weight": "x"}
    index.write_text(json.dumps(content))
    assert_same(read_hugging_face_t5(tmp_path), expected_tree(weights))
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"not beside it: \['model-1\.safetensors'\]"):
        read_hugging_face_t5(tmp_path)


def test_cast_and_device_placement(tmp_path):
    weights = tensors()
    safetensors.numpy.save_file(weights, tmp_path / "model.safetensors")
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    asked = set()
    tree = read_hugging_face_t5(tmp_path, dtype=ml_dtypes.bfloat16, sharding=lambda path: asked.add(path) or device)
    expected = {name: array.astype(ml_dtypes.bfloat16) for name, array in expected_tree(weights).items()}
    assert asked == expected.keys()
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(tree))
    assert_same(tree, expected)


def test_a_shard_of_a_transposed_tensor(tmp_path):
    """A device's part of a kernel is another part of the tensor in the file."""
    weights = tensors()
    name = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight"
    safetensors.numpy.save_file(weights, tmp_path / "model.safetensors")
    stored = open_hugging_face_t5(tmp_path)["encoder/layers_0/mlp/wi_0/kernel"]
    assert stored.shape == (4, 7)
    np.testing.assert_array_equal(stored.read((slice(0, 2), slice(3, 7))), weights[name].T[0:2, 3:7])


def test_embedding_under_the_encoders_name(tmp_path):
    weights = tensors()
    expected = expected_tree(weights)
    weights["encoder.embed_tokens.weight"] = weights.pop("shared.weight")
    safetensors.numpy.save_file(weights, tmp_path / "model.safetensors")
    assert_same(read_hugging_face_t5(tmp_path), expected)


def test_a_bias_in_every_layer(tmp_path):
    weights = tensors()
    weights[f"encoder.block.1.{BIAS}"] = weights[f"encoder.block.0.{BIAS}"] + 1
    safetensors.numpy.save_file(weights, tmp_path / "model.safetensors")
    expected = expected_tree(weights)
    del expected["encoder/relpos_bias/rel_embedding"]
    for i in range(2):
        expected[f"encoder/layers_{i}/relpos_bias/rel_embedding"] = weights[f"encoder.block.{i}.{BIAS}"].T
    assert_same(read_hugging_face_t5(tmp_path), expected)


def test_a_variant_is_taken_only_where_it_is_alone(tmp_path):
    weights = tensors()
    save_sharded(tmp_path, weights, index="model.safetensors.index.fp16.json")
    assert_same(read_hugging_face_t5(tmp_path), expected_tree(weights))
    (tmp_path / "model.safetensors.index.fp32.json").write_text("{}")
    with pytest.raises(ValueError, match=r"several models.*fp16\.json.*fp32\.json"):
        read_hugging_face_t5(tmp_path)


def test_missing_tensors_are_named(tmp_path):
    weights = tensors()
    del weights["encoder.block.0.layer.1.layer_norm.weight"], weights["shared.weight"]
    safetensors.numpy.save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="lacks 2 tensors") as error:
        read_hugging_face_t5(tmp_path)
    assert "encoder.block.0.layer.1.layer_norm.weight" in str(error.value)
    assert "encoder.embed_tokens.weight" in str(error.value)


def test_the_first_t5_is_refused(tmp_path):
    weights = {re.sub(r"wi_0", "wi", name): array for name, array in tensors().items() if "wi_1" not in name}
    safetensors.numpy.save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"wi_0\.weight.*The first T5.*not supported"):
        read_hugging_face_t5(tmp_path)


def test_damaged_and_absent_files(tmp_path):
    file = tmp_path / "model.safetensors"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_hugging_face_t5(file)
    with pytest.raises(FileNotFoundError, match=r"neither \*\.safetensors nor"):
        read_hugging_face_t5(tmp_path)
    safetensors.numpy.save_file(tensors(), file)
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or cut short"):
        read_hugging_face_t5(file)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="no weight_map"):
        read_hugging_face_t5(tmp_path / "config.json")


def test_same_parameters_as_t5x(fixtures):
    """Hugging Face's file of the fixture was converted from its T5X checkpoint."""
    directory = fixtures / "t5x_checkpoint"
    expected = traverse_util.flatten_dict(read_t5x_encoder(directory / "ckpt"), sep="/")
    assert_same(read_hugging_face_t5(directory / "hf"), expected)
