"""What a fresh clone needs: the package's description, the make targets, an import that costs little."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent


def run(*command):
    process = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=60)
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_import_is_light():
    """No TensorFlow or PyTorch, and not even JAX, before something is used."""
    loaded = run(sys.executable, "-c", "import sys, lumiere_jax; print(*sys.modules)").split()
    assert "lumiere_jax" in loaded
    assert {"jax", "flax", "orbax", "tensorflow", "torch", "tensorflow_datasets"}.isdisjoint(loaded)


def test_setup_names_the_package_and_its_version():
    name, version, packages = run(
        sys.executable,
        "-c",
        "import runpy, setuptools; captured = {}; setuptools.setup = captured.update; runpy.run_path('setup.py');"
        "print(captured['name'], captured['version'], ','.join(captured['packages']))",
    ).split()
    assert name == "lumiere-jax"
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    folders = {path.parent for path in (ROOT / "lumiere_jax").rglob("*.py")}
    assert set(packages.split(",")) == {".".join(folder.relative_to(ROOT).parts) for folder in folders}


def test_ci_runs_exactly_the_documented_command():
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    lines = [line for line in script.read_text().splitlines() if line and not line.startswith("#")]
    assert lines[-1].split("<")[0].split() == ["exec", "make", "test"]


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_targets():
    assert "make test" in run("make")
    test = run("make", "--dry-run", "test")
    for command in ("ruff check .", "ruff format --check .", "python -m pytest"):
        assert command in test
    steps = {
        "demo": (
            "sample --checkpoint=pretrained/lumiere_shapes/base",
            "sample --checkpoint=pretrained/lumiere_shapes/conditional",
            "train --config=configs/stunet.py:shapes",
            "sample --checkpoint=demo/fine_tuned",
        ),
        "demo-from-scratch": (
            "train --config=configs/stunet.py",
            "train --config=configs/ssr.py",
            "sample --checkpoint=demo/stunet",
        ),
    }
    for target, commands in steps.items():
        printed = run("make", "--dry-run", target)
        places = [
            printed.index(f"; GLIBC_TUNABLES=glibc.malloc.hugetlb=1 .venv/bin/python -m lumiere_jax.{command}")
            for command in commands
        ]
        assert places == sorted(places)
    run("make", "--dry-run", "install")
    run("make", "--dry-run", "lint")
