"""Saving and restoring: bit by bit, across crashes and architectures (device counts: distributed/test_mesh.py)."""

import hashlib
import os
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lumiere_jax.checkpoints.checkpointing import CheckpointError, CheckpointManager, load_tree, save_tree, tree_hash


def training_state():
    """What a run saves: int keys as of nnx.List, bfloat16 with all kinds of floats, a chain with empty states."""
    key = jax.random.key(0)
    special = jnp.array([np.nan, -0.0, np.inf, 1e-40], jnp.bfloat16)
    params = {"down": {0: {"kernel": jax.random.normal(key, (3, 4))}, 10: {"scale": special}, 2: {"bias": jnp.ones(5)}}}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3), optax.identity())
    return {
        "params": params,
        "optimizer": optimizer.init(params),
        "step": jnp.int32(7),
        "mask": jnp.array([True, False]),
        "key": jax.random.key_data(key),
    }


def abstract(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def assert_same_bits(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def test_every_bit_of_a_training_state_comes_back(tmp_path):
    state = training_state()
    with CheckpointManager(tmp_path / "run") as manager:
        assert manager.latest_step() is None
        manager.save(3, state, {"clips_seen": 96})
        manager.save(5, jax.tree.map(lambda leaf: leaf + leaf, state))
    with CheckpointManager(tmp_path / "run") as manager:
        assert manager.latest_step() == 5
        step, restored = manager.restore(abstract(state), step=3)
        assert manager.metadata(3) == {"clips_seen": 96}
        assert manager.metadata() == {}
    assert step == 3
    assert_same_bits(restored, state)


def test_keeps_the_newest_and_refuses_to_go_back(tmp_path):
    tree = {"a": jnp.ones(2)}
    with CheckpointManager(tmp_path, keep=2) as manager:
        for step in (1, 2, 10):
            manager.save(step, tree)
        with pytest.raises(CheckpointError, match=r"cannot save step 10 .* newest checkpoint is step 10"):
            manager.save(10, tree)  # its first save may be still running
        assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "2"]
        with pytest.raises(CheckpointError, match="step 3"):
            manager.save(3, tree)


def test_buffers_may_be_donated_or_changed_while_the_save_is_running(tmp_path):
    state = {"device": jnp.arange(1 << 20, dtype=jnp.float32)}
    host = np.arange(1 << 22, dtype=np.float32)
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0 - 1, tree), donate_argnums=0)
    with CheckpointManager(tmp_path) as manager:
        manager.save(1, state | {"host": host})
        host[:] = -1
        for _ in range(5):
            state = overwrite(state)
        _, restored = manager.restore(abstract(state | {"host": host}))
    np.testing.assert_array_equal(restored["device"], np.arange(1 << 20, dtype=np.float32))
    np.testing.assert_array_equal(restored["host"], np.arange(1 << 22, dtype=np.float32))


KILLED = """
import os, pathlib, signal, sys, time
import numpy as np
from lumiere_jax.checkpoints.checkpointing import CheckpointManager

manager = CheckpointManager(sys.argv[1])
manager.save(1, {"x": np.ones(1 << 20, np.float32)})
manager.wait()
manager.save(2, {"x": np.random.default_rng(0).integers(1 << 31, size=1 << 25, dtype=np.int32)})  # 128 MB to write
while not list(pathlib.Path(sys.argv[1]).glob("2*")):
    time.sleep(0.001)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_in_the_middle_of_a_save(tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-c", KILLED, str(run)]
    process = subprocess.run(command, env=os.environ | {"JAX_PLATFORMS": "cpu"}, check=False, timeout=120)
    assert process.returncode == -signal.SIGKILL
    half_written = [path.name for path in run.iterdir() if path.name != "1"]
    assert "2" not in half_written, "the save was over before the kill: this test tests nothing"

    with CheckpointManager(run) as manager:
        step, restored = manager.restore({"x": jax.ShapeDtypeStruct((1 << 20,), jnp.float32)})
        assert step == 1
        np.testing.assert_array_equal(restored["x"], np.ones(1 << 20, np.float32))
        assert sorted(path.name for path in run.iterdir()) == sorted(["1", *half_written])  # reading changes nothing
        manager.save(3, {"x": jnp.full(3, 2.0)})
        manager.wait()
        assert sorted(path.name for path in run.iterdir()) == ["1", "3"]  # writing clears up


def test_hash_is_of_names_shapes_dtypes_and_bytes():
    tree = {"b": {0: jnp.array([[1, 2]], jnp.int32)}, "a": jnp.array(1.5, jnp.bfloat16)}
    expected = hashlib.sha256(b"a\0()\0bfloat16\0\xc0\x3f" + b"b/0\0(1, 2)\0int32\0\1\0\0\0\2\0\0\0").hexdigest()
    assert tree_hash(tree) == expected
    assert tree_hash({"a": np.asarray(tree["a"]), "b": [np.array([[1, 2]], np.int32)]}) == expected
    changed = [
        {"b": {0: jnp.array([[1, 3]], jnp.int32)}, "a": tree["a"]},
        {"b": {0: jnp.array([1, 2], jnp.int32)}, "a": tree["a"]},
        {"b": {0: jnp.array([[1, 2]], jnp.uint32)}, "a": tree["a"]},
        {"b": {1: jnp.array([[1, 2]], jnp.int32)}, "a": tree["a"]},
    ]
    assert len({expected, *map(tree_hash, changed)}) == 5


def test_a_tree_on_its_own(tmp_path):
    tree = {"layers": {0: {"w": jnp.ones((2, 2))}, 1: {"w": jnp.zeros(3)}}, "head": np.float32(2)}
    save_tree(tmp_path / "backbone", tree)
    loaded = load_tree(tmp_path / "backbone")
    assert_same_bits(loaded, tree | {"head": jnp.float32(2)})
    with pytest.raises(CheckpointError, match=r"backbone exists.*overwrite=True"):
        save_tree(tmp_path / "backbone", tree)
    save_tree(tmp_path / "backbone", {"a": jnp.ones(1)}, overwrite=True)
    assert list(load_tree(tmp_path / "backbone")) == ["a"]
    (tmp_path / "notes").mkdir()
    with pytest.raises(CheckpointError, match="no checkpoint, it will not be overwritten"):
        save_tree(tmp_path / "notes", tree, overwrite=True)


def test_part_of_a_tree(tmp_path):
    tree = {"params": {"a": jnp.arange(3), "b": jnp.ones(2)}, "optimizer": {"a": jnp.zeros(3)}}
    save_tree(tmp_path / "tree", tree)
    wanted = {"params": {"b": jax.ShapeDtypeStruct((2,), jnp.float32)}}
    assert_same_bits(load_tree(tmp_path / "tree", wanted, partial=True), {"params": {"b": jnp.ones(2)}})
    with pytest.raises(CheckpointError, match=r"unexpected in the checkpoint \(2 leaves\)"):
        load_tree(tmp_path / "tree", wanted)
    with pytest.raises(CheckpointError, match=r"missing from the checkpoint"):
        load_tree(tmp_path / "tree", {"params": {"c": wanted["params"]["b"]}}, partial=True)


def test_checkpoint_of_another_architecture(tmp_path):
    save_tree(tmp_path / "tree", {"old": jnp.ones(1), "w": jnp.ones((3, 4)), "h": jnp.ones(2), "same": jnp.ones(2)})
    wanted = {"new": jnp.ones(1), "w": jnp.ones((3, 5)), "h": jnp.ones(2, jnp.bfloat16), "same": jnp.ones(2)}
    with pytest.raises(CheckpointError) as caught:
        load_tree(tmp_path / "tree", wanted)
    message = str(caught.value).replace(str(tmp_path), "")
    assert message == textwrap.dedent("""\
        /tree is a checkpoint of another architecture. Use the config that it was trained with, or another checkpoint.
          missing from the checkpoint (1 leaves):
            new float32[1]
          unexpected in the checkpoint (1 leaves):
            old float32[1]
          different (2 leaves):
            h: float32[2] in the checkpoint, bfloat16[2] wanted
            w: float32[3, 4] in the checkpoint, float32[3, 5] wanted""")


def test_missing(tmp_path):
    leaf = {"a": jax.ShapeDtypeStruct((200,), jnp.float32)}
    manager = CheckpointManager(tmp_path / "run")
    with pytest.raises(CheckpointError, match="run does not exist"):
        manager.restore(leaf)
    (tmp_path / "run" / "1").mkdir(parents=True)  # a step of which nothing but the directory was copied
    assert manager.latest_step() is None
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        manager.restore(leaf)
    with pytest.raises(CheckpointError, match="run/1 is not a complete checkpoint"):
        manager.restore(leaf, step=1)
    with pytest.raises(CheckpointError, match="run/4 does not exist"):
        manager.restore(leaf, step=4)
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        load_tree(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("file", "kept", "message"),
    [
        ("state/manifest.ocdbt", 0.5, "is damaged .*manifest.ocdbt"),
        ("state/manifest.ocdbt", 0, "is damaged .*Manifest not found"),
        ("state/d/*", 0.5, "is damaged .*byte range"),
        ("state/d/*", 0, "is damaged .*state/d/"),
        ("state/ocdbt.process_0/d/*", 0.5, r"is damaged .*state/ocdbt.process_0/d/\w+ has \d+ bytes, not \d+"),
        ("state/ocdbt.process_0/d/*", 0, r"is damaged .*state/ocdbt.process_0/d/\w+ is missing"),
        ("state/_METADATA", 0.5, "is damaged"),
        ("state/_METADATA", 0, "is damaged"),
        ("_CHECKPOINT_METADATA", 0, "is damaged"),
        ("commit_success.txt", 0, "is not a complete checkpoint"),
    ],
)
def test_damaged(tmp_path, file, kept, message):
    """Before any array is read: Orbax would leave its other reads to end as exceptions that nobody catches."""
    tree = list(np.random.default_rng(0).random((50, 2000), np.float32))
    save_tree(tmp_path / "tree", tree)
    path = max((tmp_path / "tree").glob(file), key=lambda path: path.stat().st_size)
    content = path.read_bytes()
    path.unlink()
    if kept:
        path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(CheckpointError, match=f"tree {message}"):
        load_tree(tmp_path / "tree", tree)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "no leaves"),
        ({"a/b": np.ones(1, np.float32)}, "key 'a/b'"),
        ({"0": np.ones(1, np.float32)}, "key '0'"),
        ({"a": {-1: np.ones(1, np.float32)}}, "key -1"),
        ({"a": 3}, "leaf a is 3: make it an array"),
        ({"a": np.ones(2)}, "leaf a is float64"),
        ({"a": np.ones((2, 0), np.float32)}, r"leaf a has shape \(2, 0\)"),
        ({"key": jax.random.key(0)}, "leaf key is a typed random key"),
    ],
)
def test_refuses_what_would_not_come_back(tmp_path, tree, message):
    with pytest.raises(ValueError, match=message):
        save_tree(tmp_path / "tree", tree)
    assert not (tmp_path / "tree").exists()
