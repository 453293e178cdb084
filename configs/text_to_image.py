"""The spatial text-to-image model: trained on single frames, then frozen inside the STUNet.

    python -m lumiere_jax.train --config=configs/text_to_image.py --workdir=workdir/text_to_image

Only for those who import no pre-trained image model. The demo's tokenizer and T5 encoder are trained together with it
and written in T5X's format. Hardware: 2 CPU cores. Time and result of variant `demo`: see docs/demo.md.

Nothing in this file is from the paper, which inflates a text-to-image model that was never released.
"""

import ml_collections

VARIANTS = ("demo", "shapes", "small", "overfit", "test")


# The captions of moving_shapes/eight_clips.
EIGHT_CLIPS = (
    "a large cyan triangle gets bigger",
    "a little yellow star drifts towards the lower right on a background that fades from light to dark",
    "a medium-sized green square spins",
    "a medium-sized blue circle moves right",
    "a medium-sized cyan ball bounces",
    "a big yellow circle circling around the center",
    "a large cyan square gets smaller on a background that fades from light to dark",
    "a little yellow ball bounces on the floor",
)


def get_config(variant: str = "demo") -> ml_collections.ConfigDict:
    """Builds the config of a variant.

    `demo`: 32x32 pixels in minutes on a laptop. `shapes`: of lumiere-shapes, which is shipped (docs/model_card.md):
    the same in hours, with a wider network. `small`: 128x128 pixels, for one accelerator; it has not been trained
    yet. `overfit`: learns eight clips of 16x16 pixels by heart (docs/overfit.md). `test`: too small to learn anything.
    """
    if variant not in VARIANTS:
        raise ValueError(f"configs/text_to_image.py has no variant {variant!r}: use {', '.join(VARIANTS)}")
    config = ml_collections.ConfigDict()
    config.name = f"text_to_image:{variant}"
    config.seed = 0
    config.compute_dtype = "float32"
    config.pretrained = ""  # else the model that is imported in place of this one (configs/deepfloyd_if.py)
    # Pixels; crop_from > 0: random crops of `size` out of frames that are scaled to so many pixels. 0: whole frames.
    config.clip = {"frames": 1, "fps": 8.0, "size": 32, "crop_from": 0}
    config.dataset = {
        "name": "moving_shapes",  # or prepared, video_folder, style_images, tfds, mixture (docs/data.md)
        # moving_shapes: one_object, one_object_256, five_seconds, demo (two at times), full; prepared: the output of
        # prepare_data; video_folder: the folder of clips; tfds: ucf101, bair_robot_pushing_small@FPS, moving_mnist@FPS;
        # mixture: NAME:PATH=WEIGHT,...
        "path": "one_object",
        "data_dir": "",  # where prepared data sets are kept; default: TFDS's own, ~/tensorflow_datasets
        "captions": "",  # video_folder: a .csv or .jsonl with file and caption; default: .txt files beside the clips
        "default_caption": "a video",  # video_folder: for clips that have no caption
        "stored_frames": 32,  # video_folder: frames, rate and size at which clips are kept, once for all stages
        "stored_fps": 16.0,
        "stored_size": 64,
        "flip_probability": 0.0,  # of mirroring a clip whose caption names no side, turn or writing
        "cache_bytes": 1 << 30,  # decoded clips kept in memory
        "threads": 2,
    }
    config.text = {
        "checkpoint": "",  # a T5X or Hugging Face T5 encoder with tokenizer; default: train a small one with this model
        "tokenizer": "",
        "embeddings": "",  # made ahead of time by prepare_text_embeddings; default: the encoder runs in the train step
        "length": 24,  # tokens; a longer prompt is an error
        # What the U-Net sees at padding: True is Hugging Face's and DeepFloyd IF's convention, False is T5X's.
        "padding_sees_tokens": True,
        "dropout": 0.1,  # of captions, for classifier-free guidance
        "vocab_size": 768,  # the rest: sizes of the encoder that is trained
        "emb_dim": 64,
        "num_heads": 4,
        "num_layers": 2,
        "head_dim": 16,
        "mlp_dim": 128,
    }
    config.unet = {
        "block_out_channels": (16, 16, 48, 96),
        "act_fn": "silu",  # DeepFloyd IF: gelu, which costs a CPU a tenth of the step more
        "layers_per_block": (1, 1, 1, 1),
        "cross_attention": (False, False, False, True),
        "attention_head_dim": 16,
        # Few: small groups normalise away what their channels say of brightness (DeepFloyd IF: 6 to 88 channels).
        "norm_num_groups": 4,
        "text_dim": 64,
        "cross_attention_dim": 64,
        "text_pooling_heads": 4,
        "time_embedding_dim": 128,
    }
    # What a training step computes again to save memory: none, products, full (lumiere_jax/models/rematerialization).
    config.remat = {
        "block": "none",  # a layer of the U-Net, with what inflates it
        "spatial": "none",  # residual blocks and attention of the image model
        "temporal": "none",  # temporal convolutions and attention
        "attention": "whole",  # or frame_by_frame or kernel, over the pixels of a frame
        "inflation": "layers",  # or kernel, all that follows an inflation block's 2D convolution
        "full_blocks": 0,  # the first so many blocks are "full", whatever else is said of blocks
    }
    config.diffusion = {
        "schedule": "cosine",  # or discrete_cosine, DeepFloyd IF's
        # Towards more noise: the large, flat objects of moving_shapes are seen through much of it, and what only the
        # text can tell (colour, place) is learned where they are not.
        "log_snr_shift": -1.0,
        # epsilon, x0 or v. The demo's thin layers find it easier to draw the clean picture than to pass the noise on:
        # after 400 steps x0 gives smooth backgrounds, where v gave speckle after 1500.
        "prediction": "x0",
        # Or min_snr, uniform. Error of x0 at log-SNR 6 after 300 steps, one run each: 0.013 as here, 0.026 with
        # learning rate 3e-3, 0.025 with uniform (and gradients clipped at 0.1, so not by the weighting alone).
        "weighting": "truncated_snr",
        "low_res_factor": 0,  # > 0: super-resolution by this factor
        # What the low-resolution video suffers in training, drawn for each clip from nothing up to this, in this order:
        "max_blur": 0.0,  # standard deviation of a Gaussian, in pixels of the low-resolution video
        "min_jpeg_quality": 0,  # from 1 (worst) to 100; 0: no compression
        "max_noise_level": 0.3,  # a diffusion time, which the network is told
        # How it is enlarged: True is DeepFloyd IF's convention. False shifts nothing: needed for crops, which would
        # otherwise be shifted more than frames are (lumiere_jax/diffusion/low_resolution.py).
        "align_corners": True,
    }
    config.training = {
        "steps": 2000,
        "batch_size": 16,
        "image_share": 0.0,  # of the batches of a video model: single frames, image_batch_size of them
        "image_batch_size": 0,
        "accumulation_steps": 1,  # parts of a batch, whose gradients are added up to save memory
        "optimizer": "adamw",  # or adafactor
        "learning_rate": 1e-3,
        "schedule": "cosine",  # after the warm-up: or linear, constant
        "warmup_steps": 50,
        "adam_b2": 0.99,
        "weight_decay": 1e-4,
        "final_learning_rate": 0.1,  # share of learning_rate at the last step (cosine and linear)
        "clip_gradient_norm": 1.0,
        "ema_decays": (0.995,),  # of the averages that are kept; the first is sampled, `sample --ema_decay` chooses
        "on_nonfinite": "stop",  # a loss or gradient that is not finite; or skip: leave that update out, and go on
        "spike_deviations": 10.0,  # a loss so many standard deviations above its running mean is a spike; 0: none is
        "on_spike": "report",  # or skip
        "skip_budget": 10,  # more updates than these left out end the run
        "checkpoint_every": 500,
        "keep_checkpoints": 2,
        "log_every": 50,
        "validate_every": 250,
        "validation_clips": 16,
        "preview_every": 2000,
    }
    config.sampling = {
        # DeepFloyd IF's stage I: ddpm, 100 steps, leading, learned_range, guidance 7, dynamic.
        "sampler": "dpm_solver_pp_2m",  # or dpm_solver_pp_2m_sde, heun (two calls a step), ddim, ddpm
        "steps": 20,
        "spacing": "uniform",  # of the times: or log_snr, karras (for heun), or leading (with discrete_cosine)
        # Of ddpm's steps: or learned_range, where the U-Net has 6 output channels (DeepFloyd IF). Training scores the
        # prediction alone, nothing holds the variance in its place: after much of it posterior is the safer one.
        "variance": "posterior",
        "guidance": 3.0,
        "guidance_interval": (0.0, 1.0),  # diffusion times at which clips are guided
        "guidance_rescale": 0.0,  # share of the way back to the contrast of the unguided prediction
        "threshold": "dynamic",  # or static, none
        "threshold_percentile": 0.95,  # of dynamic (DeepFloyd IF's)
        "threshold_maximum": 1.5,  # of dynamic (DeepFloyd IF's stage I; 1 at stage II)
        "preview_prompts": (
            "a large red circle moving left",
            "a green square spinning",
            "a blue triangle bouncing",
            "a small yellow star moving up and to the right",
        ),
    }
    config.mesh = {"data": -1, "rows": 1}
    config.fsdp = False  # parameters divided over the devices, rather than whole on each of them
    if variant == "shapes":
        config.dataset.update({"path": "five_seconds", "cache_bytes": 4 << 30})
        # Wide where pixels are few. Text is read where a shape has parts (8x8) as well as where it is a blob (4x4).
        config.unet.update({"block_out_channels": (16, 24, 64, 128), "layers_per_block": (0, 1, 1, 1)})
        config.unet.cross_attention = (False, False, True, True)
        # Constant, so that a run can be continued as long as there is time; the average takes the decay's place.
        config.training.update({"steps": 20_000, "schedule": "constant", "ema_decays": (0.999,)})
        config.training.update({"validate_every": 500, "preview_every": 4000})
        # Fresh noise at each step mends what a network at the beginning of its training does wrong: after 3000 steps an
        # object is found in 48 of 48 pictures, 47 of them in its colour; after 2000, without, in 43 and 41.
        config.sampling.sampler = "dpm_solver_pp_2m_sde"
    if variant == "small":
        config.compute_dtype = "bfloat16"
        config.remat.block = "products"  # docs/model_sizes.md says what fits where
        config.clip.update({"fps": 16.0, "size": 128})
        config.dataset.update({"path": "full", "stored_frames": 80, "stored_size": 128, "threads": 8})
        config.text.update({"emb_dim": 256, "num_heads": 8, "num_layers": 4, "head_dim": 32, "mlp_dim": 512})
        config.unet.update({"block_out_channels": (64, 128, 256, 384), "layers_per_block": (2, 2, 2, 2)})
        config.unet.update({"cross_attention": (False, False, True, True), "attention_head_dim": 64})
        config.unet.update({"act_fn": "gelu", "norm_num_groups": 16, "text_dim": 256, "cross_attention_dim": 384})
        config.unet.update({"text_pooling_heads": 8, "time_embedding_dim": 384})
        config.training.update({"steps": 200_000, "batch_size": 64, "learning_rate": 3e-4, "warmup_steps": 1000})
        config.training.update({"ema_decays": (0.9999,), "checkpoint_every": 2000, "validate_every": 2000})
        config.training.update({"preview_every": 10_000, "validation_clips": 64})
        config.sampling.steps = 50
    if variant == "overfit":
        config.clip.update({"fps": 4.0, "size": 16})
        config.dataset.update({"path": "eight_clips", "stored_frames": 8, "stored_fps": 4.0, "stored_size": 32})
        config.unet.update({"block_out_channels": (16, 32, 64), "layers_per_block": (1, 1, 1)})
        config.unet.update({"cross_attention": (False, False, True), "norm_num_groups": 4})
        config.training.update({"steps": 600, "batch_size": 16, "learning_rate": 3e-3, "ema_decays": (0.98,)})
        config.training.update({"checkpoint_every": 300, "validate_every": 50, "validation_clips": 64, "log_every": 20})
        config.training.preview_every = 0
        config.sampling.guidance = 1.0  # what is known by heart needs no help
        config.sampling.preview_prompts = EIGHT_CLIPS
    if variant == "test":
        config.unet.block_out_channels = (8, 16)
        config.unet.layers_per_block = (1, 1)
        config.unet.cross_attention = (False, True)
        config.unet.attention_head_dim = 8
        config.unet.norm_num_groups = 2
        config.clip.size = 16
        config.dataset.path = "tiny"
        config.text.length = 32
        config.training.update({"steps": 4, "batch_size": 4, "warmup_steps": 1, "checkpoint_every": 2, "log_every": 1})
        config.training.update({"validate_every": 2, "validation_clips": 2, "preview_every": 4})
        config.sampling.steps = 2
        config.sampling.preview_prompts = config.sampling.preview_prompts[:1]
    return config
