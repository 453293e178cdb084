"""Runs of the smallest networks with random parameters, in memory and on disk: nothing is trained for them."""

import dataclasses
import pathlib

import jax
import ml_collections
from flax import nnx
from random_unets import randomised, smallest_stunet

from configs import ssr, stunet
from lumiere_jax.abstract_model import abstract_unet
from lumiere_jax.checkpoints.checkpointing import save_tree
from lumiere_jax.checkpoints.run_directory import RunDirectory
from lumiere_jax.checkpoints.trained_run import Run
from lumiere_jax.distributed import partitioning
from lumiere_jax.distributed.mesh import make_mesh
from lumiere_jax.models import parameter_partition
from lumiere_jax.models.conditioning import expand_first_convolution
from lumiere_jax.models.stunet import deflate
from lumiere_jax.models.temporal import TemporalConfig
from lumiere_jax.models.text_to_video import TextToVideo
from lumiere_jax.models.unet2d import UNet2D
from lumiere_jax.models.unet2d_config import UNet2DConfig
from lumiere_jax.text.t5_encoder import T5Config, T5Encoder
from lumiere_jax.text.tokenizer import train_tokenizer


def random_run(
    super_resolution: bool = False, mesh: jax.sharding.Mesh | None = None, *, conditional: bool = False
) -> Run:
    """A STUNet of widths 4 and 8, sampled by two steps of guided DDPM; for super-resolution in windows of 4 frames."""
    config = (ssr if super_resolution else stunet).get_config("test")
    config.temporal.update({"strides": (2,), "norm_groups": 2, "attention_head_dim": 4, "attention_layers": 2})
    config.sampling.update({"sampler": "ddpm", "steps": 2, "guidance": 2.0})
    unet = smallest_stunet(super_resolution=super_resolution)
    if conditional:
        config.conditioning = {"base": "", "masks": {"nothing": 1.0}}
        unet = expand_first_convolution(unet, rngs=nnx.Rngs(0))
    return _run_of(config, unet, mesh)


def random_super_resolution_4x() -> Run:
    """Four times larger in one step, most layers at low resolution: what 1024x1024 pixels can be made with on a CPU."""
    config = ssr.get_config("demo_4x")
    config.temporal.update({"norm_groups": 2, "attention_head_dim": 4})
    config.sampling.update({"sampler": "ddim", "steps": 1})
    fields = config.image_model.unet.to_dict() | {"block_out_channels": (4, 4, 8, 8), "layers_per_block": (0, 1, 1, 1)}
    fields |= {"norm_num_groups": 2, "attention_head_dim": 4, "text_dim": 8, "text_pooling_heads": 2}
    return _run_of(config, abstract_unet(UNet2DConfig(**fields), TemporalConfig(**config.temporal)))


def _run_of(config: ml_collections.ConfigDict, unet: UNet2D, mesh: jax.sharding.Mesh | None = None) -> Run:
    config.unet = dataclasses.asdict(unet.config)
    sizes = T5Config(vocab_size=300, emb_dim=unet.config.text_dim, num_heads=1, num_layers=1, head_dim=4, mlp_dim=8)
    text_encoder = T5Encoder(sizes, rngs=nnx.Rngs(0))
    mesh = make_mesh() if mesh is None else mesh
    model = TextToVideo(text_encoder, randomised(unet))
    # The U-Net normalises each channel of the text over the tokens. Those at padding are all alike: small embeddings
    # keep what is left of the variance above rounding, which would be seen in the clips.
    model.text_encoder.encoder.encoder_norm.scale[...] *= 0.03
    model.unet.encoder_hid_proj.bias[...] *= 0.0
    graphdef, state = nnx.split(model)
    model = nnx.merge(graphdef, partitioning.place(mesh, nnx.to_pure_dict(state)))
    return Run(config, train_tokenizer(["a red circle"], vocab_size=300), model, 1, pathlib.Path("random"), mesh)


def write_run(run: Run, workdir: pathlib.Path) -> None:
    """Leaves on disk what a training that ended with `run` would."""
    directory = RunDirectory(workdir)
    directory.write_config(run.config, {})
    directory.write_tokenizer(run.tokenizer)
    directory.write_text_encoder(0, nnx.to_pure_dict(nnx.state(run.model.text_encoder)))
    _, trained, _ = parameter_partition.split(run.model.unet)
    with directory.checkpoints() as checkpoints:
        checkpoints.save(run.step, {"averages": [{"unet": trained}]})
    save_tree(directory.backbone, nnx.to_pure_dict(nnx.state(deflate(run.model.unet))))
