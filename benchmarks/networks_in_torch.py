"""The peers in PyTorch, as `peer_networks` measures them; imported only in the process that runs them.

`diffusers UNet2DConditionModel` has our weights and computes what our U-Net computes. The video networks compute
something else for the same clip and text, at the same widths and numbers of layers:

  lumiere-pytorch                 its temporal layers where ours are, around that U-Net
  diffusers UNetMotionModel       AnimateDiff's: temporal attention at every level, no down-sampling in time
  diffusers UNet3DConditionModel  ModelScope's: temporal convolutions at every level, and attention where text is read

The forward pass runs in inference mode. On an accelerator in bfloat16 by autocast, over float32 parameters.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel, UNet3DConditionModel, UNetMotionModel
from torch.nn import functional
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.peer_networks import IMAGE_PEER, LUMIERE, MOTION, UNET_3D, Competitor, Program, Task

_TIMES = 1000.0  # what the networks' times go up to
_CHANNELS_FIRST = {4: (0, 3, 1, 2), 5: (0, 4, 1, 2, 3)}


def start(task: Task) -> None:
    """Threads and device.

    Raises:
      RuntimeError: PyTorch finds no such device.
    """
    torch.set_num_threads(task.threads)
    torch.zeros((), device=_device(task))


def write_weights(directory: str) -> None:
    """Writes new weights beside the config.json of a `UNet2DConditionModel`, as diffusers does."""
    torch.manual_seed(0)
    model = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(directory))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases would be 1 and 0: then an exchange would not show
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(directory)


def build(task: Task, competitor: Competitor) -> Program:
    """The peer, with random temporal layers where it has some."""
    torch.manual_seed(0)
    network = _NETWORKS[competitor.name](task).to(_device(task))
    inputs = {name: torch.from_numpy(array).to(_device(task)) for name, array in task.inputs().items()}
    inputs = {name: _channels_first(array, task.network) for name, array in inputs.items()}
    arguments = tuple(inputs[name] for name in ("video", "time", "text"))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(*arguments)
    if "channels last" in competitor.mode:
        network = network.to(memory_format=torch.channels_last)
        if task.network == "image":
            arguments = (arguments[0].contiguous(memory_format=torch.channels_last), *arguments[1:])
    run = torch.compile(network) if "compile" in competitor.mode else network
    trained = [] if task.program == "forward" else [each for each in _parameters(network) if each.requires_grad]
    compute = _PROGRAMS[task.program](task, run, trained, arguments, inputs["target"])
    return _program(task, compute, network, trained, counter.get_total_flops())


def _device(task: Task) -> torch.device:
    return torch.device("cpu" if task.device == "cpu" else "cuda")


def _channels_first(array: torch.Tensor, network: str) -> torch.Tensor:
    if array.ndim != 5:
        return array
    array = array[:, 0] if network == "image" else array
    return array.permute(_CHANNELS_FIRST[array.ndim]).contiguous()


def _precision(task: Task) -> contextlib.AbstractContextManager:
    is_float32 = task.dtype == "float32"
    return contextlib.nullcontext() if is_float32 else torch.autocast("cuda", getattr(torch, task.dtype))


# ---------------------------------------------------------------------------------------------- networks


class _Image(torch.nn.Module):
    """diffusers' U-Net with our weights, called with positions alone."""

    def __init__(self, task: Task):
        super().__init__()
        # Without low_cpu_mem_usage, which needs one more library.
        self.unet = UNet2DConditionModel.from_pretrained(task.weights, low_cpu_mem_usage=False)

    def forward(self, x: torch.Tensor, time: torch.Tensor, text: torch.Tensor | None = None) -> torch.Tensor:
        if text is None:  # lumiere-pytorch tries its network so, to learn the widths
            text = x.new_zeros(len(x), 1, self.unet.config.encoder_hid_dim)
        return self.unet(x, time, text).sample


class _Lumiere(torch.nn.Module):
    """lumiere-pytorch around diffusers' U-Net."""

    def __init__(self, task: Task):
        # Here: the other peers need it not.
        from lumiere_pytorch import Lumiere

        super().__init__()
        config = task.get_config()
        image = _Image(task)
        unet, head_width = image.unet.config, config.temporal.attention_head_dim
        self.lumiere = Lumiere(
            image,
            image_size=task.size,
            unet_time_kwarg="time",
            channels=unet.in_channels,
            attn_inflation_kwargs={
                "depth": config.temporal.attention_layers,
                "heads": unet.block_out_channels[-1] // head_width,
                "dim_head": head_width,
            },
            **inflated_modules(unet.down_block_types, unet.layers_per_block, config.temporal.strides),
        )
        for module in self.lumiere.modules():
            module.register_forward_pre_hook(_by_position, with_kwargs=True, prepend=True)

    def forward(self, video: torch.Tensor, time: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return self.lumiere(video, time=time, text=text)


def _by_position(_module: torch.nn.Module, given: tuple, named: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """The hooks of lumiere-pytorch want a positional argument, diffusers' U-Net calls its levels with names alone."""
    if given or "hidden_states" not in named:
        return given, named
    return (named["hidden_states"],), {name: value for name, value in named.items() if name != "hidden_states"}


def inflated_modules(
    down_block_types: Sequence[str], layers_per_block: Sequence[int], strides: Sequence[int]
) -> dict[str, list[str]]:
    """Which modules of `_Image` lumiere-pytorch inflates: those that `models/stunet.py` does.

    Where ours has a resampler of stride 1, it has none: its own always halve and double.
    """
    levels = len(down_block_types)
    convolutions, attentions = [], ["unet.mid_block"]
    for way, extra in (("down", 0), ("up", 1)):
        for i in range(levels):
            level = i if way == "down" else levels - 1 - i
            last = "attentions" if "CrossAttn" in down_block_types[level] else "resnets"
            chosen = attentions if level == levels - 1 else convolutions
            chosen += [f"unet.{way}_blocks.{i}.{last}.{j}" for j in range(layers_per_block[level] + extra)]
    halved = [level for level, stride in enumerate(strides) if stride > 1]
    return {
        "conv_module_names": convolutions,
        "attn_module_names": attentions,
        "downsample_module_names": [f"unet.down_blocks.{level}.downsamplers.0" for level in halved],
        "upsample_module_names": [f"unet.up_blocks.{levels - 2 - level}.upsamplers.0" for level in halved],
    }


class _Motion(torch.nn.Module):
    """AnimateDiff's network; its image layers do not train."""

    def __init__(self, task: Task):
        super().__init__()
        shared = _shared_fields(task, "Motion")
        head_width = shared.pop("attention_head_dim")
        heads = tuple(width // head_width for width in shared["block_out_channels"])
        self.unet = UNetMotionModel(
            **shared,
            num_attention_heads=heads,
            motion_num_attention_heads=heads,
            motion_max_seq_length=max(32, task.frames),
        )
        self.unet.freeze_unet2d_params()

    def forward(self, video: torch.Tensor, time: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return self.unet(video, time, text.repeat_interleave(video.shape[2], dim=0)).sample


class _ThreeD(torch.nn.Module):
    """ModelScope's network; only its temporal layers train."""

    def __init__(self, task: Task):
        super().__init__()
        shared = _shared_fields(task, "3D")
        if len(set(shared["layers_per_block"])) > 1:
            raise ValueError(f"layers_per_block={shared['layers_per_block']} must be the same at all levels")
        layers = shared.pop("layers_per_block")[0]
        # What it calls attention_head_dim is the number of heads, one for all levels.
        heads = max(1, min(shared["block_out_channels"]) // shared.pop("attention_head_dim"))
        self.unet = UNet3DConditionModel(**shared, layers_per_block=layers, attention_head_dim=heads)
        for name, parameter in self.unet.named_parameters():
            parameter.requires_grad_(any(part in name for part in ("temp_convs", "temp_attentions", "transformer_in")))

    def forward(self, video: torch.Tensor, time: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return self.unet(video, time, text).sample


def _shared_fields(task: Task, suffix: str) -> dict[str, Any]:
    """The image network's sizes, for diffusers' video networks. Their text comes without a projection before it."""
    unet = UNet2DConditionModel.load_config(task.weights)
    has_text = ["CrossAttn" in block for block in unet["down_block_types"]]
    named = {True: "CrossAttn{}Block" + suffix, False: "{}Block" + suffix}
    fields = ("in_channels", "out_channels", "block_out_channels", "layers_per_block", "act_fn")
    return {field: unet[field] for field in (*fields, "norm_num_groups", "norm_eps", "attention_head_dim")} | {
        "down_block_types": [named[has].format("Down") for has in has_text],
        "up_block_types": [named[has].format("Up") for has in has_text[::-1]],
        "cross_attention_dim": unet["encoder_hid_dim"],
    }


_NETWORKS: dict[str, Callable[[Task], torch.nn.Module]] = {
    IMAGE_PEER: _Image,
    LUMIERE: _Lumiere,
    MOTION: _Motion,
    UNET_3D: _ThreeD,
}


def _parameters(network: torch.nn.Module) -> list[torch.nn.Parameter]:
    """All of them, once each: `Lumiere.parameters` lists its own alone."""
    return [parameter for _, parameter in network.named_parameters()]


# ---------------------------------------------------------------------------------------------- programs

Compute = Callable[[], dict[str, torch.Tensor]]
_Arguments = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _forward(
    task: Task, run: Callable, _trained: list[torch.nn.Parameter], arguments: _Arguments, _target: torch.Tensor
) -> Compute:
    def compute() -> dict[str, torch.Tensor]:
        with torch.inference_mode(), _precision(task):
            return {"output": run(*arguments)}

    return compute


def _gradient(
    task: Task, run: Callable, trained: list[torch.nn.Parameter], arguments: _Arguments, target: torch.Tensor
) -> Compute:
    def compute() -> dict[str, torch.Tensor]:
        with _precision(task):
            out = run(*arguments).float()
        loss = functional.mse_loss(out, target)
        gradient = torch.autograd.grad(loss, trained)
        return {"output": out, "loss": loss, "gradient": gradient}

    return compute


def _training_step(
    task: Task, run: Callable, trained: list[torch.nn.Parameter], arguments: _Arguments, _target: torch.Tensor
) -> Compute:
    """What `train_step` does: noise, x0's loss, clipping, AdamW (fused, its fastest), a moving average."""
    fields, (video, _, text) = task.get_config().training, arguments
    optimizer = torch.optim.AdamW(
        trained, fields.learning_rate, betas=(0.9, fields.adam_b2), weight_decay=fields.weight_decay, fused=True
    )
    averages = [[parameter.detach().clone() for parameter in trained] for _ in fields.ema_decays]
    updates = [get_ema_multi_avg_fn(decay) for decay in fields.ema_decays]

    def compute() -> dict[str, torch.Tensor]:
        time = torch.rand(len(video), device=video.device)
        alpha, sigma = (f(time * torch.pi / 2)[:, None, None, None, None] for f in (torch.cos, torch.sin))
        noisy = alpha * video + sigma * torch.randn_like(video)
        with _precision(task):
            x0 = run(noisy, _TIMES * time, text)[:, : video.shape[1]].float()
        loss = functional.mse_loss(x0, video)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, fields.clip_gradient_norm)
        optimizer.step()
        with torch.no_grad():
            for average, update in zip(averages, updates, strict=True):
                update(average, trained, 0)
        return {"loss": loss}

    return compute


_PROGRAMS = {"forward": _forward, "gradient": _gradient, "training_step": _training_step}


def _program(
    task: Task, compute: Compute, network: torch.nn.Module, trained: list[torch.nn.Parameter], flops: float
) -> Program:
    on_gpu = task.device == "gpu"

    def call() -> None:
        compute()
        if on_gpu:
            torch.cuda.synchronize()

    def results() -> dict[str, np.ndarray]:
        computed = compute()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        if "gradient" in computed:
            gradient = computed.pop("gradient")
            computed["gradient norm"] = torch.stack([each.float().norm() for each in gradient]).norm()
        return {
            name: _channels_last(value.detach().float().cpu().numpy(), task.network) for name, value in computed.items()
        }

    count = sum(parameter.numel() for parameter in _parameters(network))
    peak = torch.cuda.max_memory_allocated if on_gpu else None
    return Program(call, results, count, sum(each.numel() for each in trained), flops, peak)


def _channels_last(array: np.ndarray, network: str) -> np.ndarray:
    if array.ndim < 4:
        return array
    array = np.moveaxis(array, 1, -1)
    return array[:, None] if network == "image" else array
