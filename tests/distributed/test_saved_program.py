"""Compiled programs in files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumiere_jax.distributed import saved_program
from lumiere_jax.distributed.saved_program import load_program, save_program
from lumiere_jax.train_setup import update_from_file
from lumiere_jax.train_step import Batch, TrainState

X = jax.ShapeDtypeStruct((3,), jnp.float32)


def lowered(factor):
    return jax.jit(lambda x, more: ({"sum": (factor * x).sum()}, x + more["one"]), donate_argnums=0).lower(
        X, {"one": 1}
    )


@pytest.fixture
def saved(tmp_path):
    program = lowered(2.0)
    save_program(tmp_path / "program", program, program.compile(), jax.devices())
    return tmp_path / "program"


def test_it_computes_what_was_compiled(saved):
    loaded = load_program(saved, lowered(2.0))
    sums, sent = loaded(jnp.arange(3.0), {"one": 1})
    assert sums["sum"] == 6.0
    np.testing.assert_array_equal(sent, [1.0, 2.0, 3.0])
    with pytest.raises(TypeError, match="compiled"):
        loaded(jnp.arange(4.0), {"one": 1})
    assert [path.name for path in saved.parent.iterdir()] == ["program"]


def test_another_program_is_refused(saved):
    with pytest.raises(ValueError, match=r"compile it again\. program: \w+ there, \w+ here$"):
        load_program(saved, lowered(3.0))


def test_other_versions_and_devices_are_refused(saved, monkeypatch):
    monkeypatch.setattr(saved_program.importlib.metadata, "version", lambda name: "9")
    monkeypatch.setattr(jax, "devices", lambda: [*jax.local_devices(), *jax.local_devices()])
    with pytest.raises(ValueError, match=r"devices: 1 there, 2 here; jax: [\d.]+ there, 9 here; jaxlib: "):
        load_program(saved, lowered(2.0))


def test_a_training_step_from_a_file_is_compiled_for_other_batches_alone(tmp_path):
    def batch(clips):
        return Batch(jnp.ones((clips, 2)), jnp.ones((clips, 3)))

    update = jax.jit(lambda state, frozen, batch: state.step + batch.video.sum() + frozen["one"])
    state, frozen = TrainState(*(jnp.zeros(()) for _ in TrainState._fields)), {"one": jnp.ones(())}
    program = update.lower(state, frozen, batch(2))
    save_program(tmp_path / "program", program, program.compile(), jax.devices())
    chosen = update_from_file(tmp_path / "program", update, state, frozen, batch(2))
    assert chosen(state, frozen, batch(2)) == 5.0
    assert update._cache_size() == 0
    assert chosen(state, frozen, batch(4)) == 9.0
    assert update._cache_size() == 1


@pytest.mark.parametrize("content", [b"", b"\x80\x04\n", b"[1]\n", b'{"program": 1}'])
def test_what_is_not_a_program(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match="is not a compiled program: make one with compile_for_tpu --save"):
        load_program(tmp_path / "file", lowered(2.0))
    with pytest.raises(FileNotFoundError):
        load_program(tmp_path / "other", lowered(2.0))
