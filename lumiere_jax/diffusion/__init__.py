"""The diffusion process: schedules, losses, guidance, samplers, MultiDiffusion."""
