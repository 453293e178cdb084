"""Shared by all tests: shape-checked annotations and a persistent compilation cache."""

import contextlib
import gc
import io
import os
import pathlib
import signal

# Before JAX starts, and for all processes that tests start. libtpu, which compiles for TPUs, must look for none here.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compile time dominates: programs are tiny, so let XLA try less, and generate code in its older way (0.6 of the
# processor time for a small training step); and what one process or run compiled serves the others.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(pathlib.Path(__file__).parent.parent / ".cache" / "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"

import jax
import jaxtyping
import pytest

# Tracing makes hundreds of thousands of small objects that live on, which Python would look through again and again.
gc.set_threshold(200_000, 20, 100)

# Where pytest itself was started in the background it ignores Ctrl-C, and so would what tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Every public function's shape annotations are checked while the tests run.
jaxtyping.install_import_hook("lumiere_jax", "beartype.beartype")

FIXTURES = pathlib.Path(__file__).parent.parent.parent / "shared" / "fixtures"


# Minutes each, the longest first. Begun last, they would leave the other worker idle at the end.
LONG = (
    "distributed/test_training_processes.py",
    "test_train.py",
    "test_trained_runs.py",
    "test_resume.py",
    "pipelines/test_full_size.py",
    "distributed/test_partitioning.py",
    "test_app.py",
    "checkpoints/test_imported_backbone.py",
    "benchmarks/test_one_pass_vs_cascade.py",
    "test_notebook.py",
    "test_compile_for_tpu.py",
    "benchmarks/test_ablations.py",
)


def pytest_collection_modifyitems(items):
    """The files of LONG first."""
    order = {pathlib.Path(__file__).parent / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path, len(LONG)))


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=5, help="of test_resume.py::test_killed_at_random_moments")


@pytest.fixture(scope="session")
def fixtures() -> pathlib.Path:
    """Files written by the real T5X and diffusers, and real video clips; not part of the repository."""
    if not FIXTURES.is_dir():
        pytest.skip(f"needs {FIXTURES}")
    return FIXTURES


@pytest.fixture
def float64():
    """Everything that the test makes and computes is float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Where the runs of a test session keep their prepared data set."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def base(tmp_path_factory, data_dir):
    """A trained STUNet with the image model that was trained first, and what the training printed."""
    # Only now: the package is imported after its annotations' hook.
    from small_runs import small_config

    from configs import stunet
    from lumiere_jax import train

    workdir = tmp_path_factory.mktemp("base")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        train.train(small_config(stunet, data_dir), workdir)
    return workdir, printed.getvalue()
