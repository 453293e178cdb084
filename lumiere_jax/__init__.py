"""Lumiere-JAX: an open implementation of Lumiere (arXiv 2401.12945), text to video with a Space-Time U-Net.

import lumiere_jax
base = lumiere_jax.load_run("demo/stunet")
clips = lumiere_jax.sample_videos(base, ["a red circle moving left"], seed=0)   # [1, T, H, W, 3] in [-1, 1]
"""

import importlib

__version__ = "0.1.0"

# Imported when first used, so that `import lumiere_jax` and `--help` take no time.
_PUBLIC = {
    "load_run": "lumiere_jax.checkpoints.trained_run",
    "load_temporal": "lumiere_jax.checkpoints.temporal_weights",
    "make_mesh": "lumiere_jax.distributed.mesh",
    "sample_videos": "lumiere_jax.pipelines.text_to_video",
    "watch_denoising": "lumiere_jax.pipelines.text_to_video",
    "Condition": "lumiere_jax.diffusion.condition",
    "complete_videos": "lumiere_jax.pipelines.conditional_generation",
    "edit_videos": "lumiere_jax.pipelines.video_editing",
    "stylized": "lumiere_jax.pipelines.stylized_generation",
    "super_resolve": "lumiere_jax.pipelines.super_resolution",
    "write_video": "lumiere_jax.pipelines.results",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"lumiere_jax has no {name}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
