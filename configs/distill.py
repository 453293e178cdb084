"""Few steps: a student of a trained Space-Time U-Net, which needs no guidance (lumiere_jax/diffusion/distillation.py).

    python -m lumiere_jax.train --config=configs/distill.py --config.distillation.teacher=workdir/stunet \\
        --workdir=workdir/eight_steps
    python -m lumiere_jax.train --config=configs/distill.py --config.distillation.teacher=workdir/eight_steps \\
        --config.distillation.steps=4 --workdir=workdir/four_steps

The first student does in 8 steps what its teacher does in 16 guided ones, which are 32 calls of the network; the second
does in 4 what the first does in 8. Clip, networks and diffusion are the teacher's. Trained are the temporal layers,
which start as the teacher's. Hardware: 2 CPU cores for `demo`; what came out: docs/sampling.md. No value is from the
paper.
"""

import ml_collections

from configs import stunet

VARIANTS = stunet.VARIANTS


def get_config(variant: str = "demo") -> ml_collections.ConfigDict:
    """Builds the config of a student whose teacher has variant `variant` of configs/stunet.py."""
    config = stunet.get_config(variant)
    config.name = f"distill:{variant}"
    config.distillation = {
        "teacher": "",  # the --workdir of a Space-Time U-Net's training, or of another student's
        "steps": 8,  # of the student; the teacher takes twice as many
        "sampling": {},  # the teacher's: written when the run is started
    }
    config.text.dropout = 0.0  # there is no guidance to need it for
    config.sampling.update({"sampler": "ddim", "spacing": "uniform", "guidance": 1.0})
    config.sampling.steps = config.distillation.get_ref("steps")
    config.training.learning_rate /= 2
    config.training.warmup_steps = min(config.training.warmup_steps, 20)
    if variant == "demo":
        config.training.update({"steps": 300, "preview_every": 300})
    return config
