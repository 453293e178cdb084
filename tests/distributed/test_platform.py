import os
import pathlib
import subprocess
import sys
import types

import jax
import jaxlib
import pytest

from lumiere_jax.distributed import platform

FLAG = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"


def test_fresh_process_gets_the_flag_and_the_cache(tmp_path):
    """XLA ends the process at a flag that it does not know, so a convolution that runs shows that it does."""
    script = """
import os
from lumiere_jax.distributed import platform
platform.configure()
platform.configure()
import jax, jax.numpy as jnp
jax.jit(lambda x, w: jax.lax.conv(x, w, (1, 1), "SAME"))(jnp.ones((1, 2, 8, 8)), jnp.ones((2, 2, 3, 3)))
print(os.environ["XLA_FLAGS"])
"""
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")} | {
        "HOME": str(tmp_path),
        "JAX_PLATFORMS": "cpu",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
    }
    process = subprocess.run(
        [sys.executable, "-c", script], env=environment, check=False, capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == ["--xla_force_host_platform_device_count=1", FLAG]
    assert list((tmp_path / ".cache/lumiere_jax/xla").iterdir())


def test_what_the_user_set_stays(monkeypatch):
    mine = "--xla_cpu_experimental_ynn_fusion_type=-reduce"
    monkeypatch.setenv("XLA_FLAGS", mine)
    cache = jax.config.jax_compilation_cache_dir  # conftest.py has set it
    platform.configure()
    assert os.environ["XLA_FLAGS"] == mine
    assert jax.config.jax_compilation_cache_dir == cache is not None


@pytest.mark.parametrize(("platforms", "expected"), [("cpu", FLAG), ("tpu,cpu", ""), ("cuda", "")])
def test_only_on_a_cpu(monkeypatch, platforms, expected):
    monkeypatch.setenv("XLA_FLAGS", "")
    config = types.SimpleNamespace(jax_platforms=platforms, jax_compilation_cache_dir="set")
    monkeypatch.setattr(platform, "jax", types.SimpleNamespace(config=config))
    platform.configure()
    assert os.environ["XLA_FLAGS"] == expected


@pytest.mark.parametrize(
    ("libtpu", "chips", "plugins", "expected"),
    [(False, [], [], True), (True, [], [], True), (True, ["/dev/vfio/0"], [], False), (False, [], ["cuda"], False)],
)
def test_what_counts_as_a_cpu_alone(monkeypatch, libtpu, chips, plugins, expected):
    """libtpu alone does not: it also compiles for TPUs where there is none."""
    chosen = {}
    config = types.SimpleNamespace(jax_platforms=None, jax_compilation_cache_dir="set", update=chosen.__setitem__)
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(platform, "jax", types.SimpleNamespace(config=config))
    monkeypatch.setattr(platform.importlib.util, "find_spec", lambda name: object() if libtpu else None)
    monkeypatch.setattr(platform.importlib.metadata, "entry_points", lambda group: plugins)
    monkeypatch.setattr(platform.glob, "glob", lambda pattern: [path for path in chips if pattern.startswith("/dev/v")])
    platform.configure()
    assert chosen == ({"jax_platforms": "cpu"} if expected else {})
    assert os.environ["XLA_FLAGS"] == (FLAG if expected else "")


@pytest.mark.parametrize("content", [None, b"xla_cpu_experimental_ynn_fusion_type", b"INDIVIDUAL_CONVOLUTION"])
def test_not_on_a_jaxlib_without_it(monkeypatch, tmp_path, content):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(jaxlib, "__file__", str(tmp_path / "__init__.py"))
    if content is not None:
        pathlib.Path(tmp_path / "libjax_common.so").write_bytes(content)
    platform.configure()
    assert os.environ["XLA_FLAGS"] == ""
