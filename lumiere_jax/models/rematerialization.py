"""Rematerialisation: what a training step keeps of its forward pass, and what its backward pass computes again.

Each field of `Rematerialization` is a kind of module and has the name of a policy:

none       the module's values are kept. All that the backward pass reads lies in memory at once.
products   kept are its inputs, the results of its convolutions and of its products with weights, and statistics
           over many values. Computed again are normalisations, activations and attention weights: many values, few
           operations.
full       kept are its inputs alone. Computed again is all of it that its gradient asks for.

Attention over the pixels of a frame and inflation blocks have policies of their own, which are about sampling too: see
`attention` and `inflation`.

Loss and gradients are the same to rounding, so a run may be continued under another policy. Nothing of the model
changes but the order in which a compiler may work: without a gradient the three policies do nothing.
docs/model_sizes.md has what each of them keeps and costs.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

# A sum over this many values or more is a statistic of a normalisation: one value to keep, all of them to read again.
_MANY_VALUES = 64


def _is_product_or_statistic(primitive: Any, *inputs: Any, **parameters: Any) -> bool:
    """A convolution; a matrix product without batch axes: with weights, as attention's have batch axes; a long sum."""
    if primitive is jax.lax.dot_general_p:
        _, (batch_axes, _) = parameters["dimension_numbers"]
        return not batch_axes
    if primitive is jax.lax.reduce_sum_p:
        return math.prod(inputs[0].shape[axis] for axis in parameters["axes"]) >= _MANY_VALUES
    return primitive is jax.lax.conv_general_dilated_p


# A sum of two products that is read again is kept in place of both.
SUM = "sum of products"
# What a kernel's queries get of what they attend to, with its statistics: few values, after many operations.
ATTENDED = "attended"
# What a kernel reads: as nothing is fused into one, making it again is a pass over all values.
READ_BY_KERNEL = "read by a kernel"

_KEPT = {
    "products": jax.checkpoint_policies.save_from_both_policies(
        _is_product_or_statistic, jax.checkpoint_policies.save_only_these_names(SUM, ATTENDED, READ_BY_KERNEL)
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
}
POLICIES = ("none", *_KEPT)
ATTENTION = ("whole", "frame_by_frame", "kernel")
INFLATION = ("layers", "kernel")


# Fields of `Rematerialization` that pay together, from the most memory and the least work to the least and the most.
CHOICES: tuple[dict[str, str], ...] = (
    {},
    {"block": "products"},
    {"spatial": "products", "temporal": "full"},
    {"spatial": "full", "temporal": "full"},
    {"block": "full"},
)


@dataclasses.dataclass(frozen=True)
class Rematerialization:
    """A policy for each kind of module; nothing here is from the paper."""

    # Each layer of the U-Net with the temporal layers that inflate it and the concatenation of its skip connection.
    block: str = "none"
    spatial: str = "none"  # each residual block and each attention of the image model
    temporal: str = "none"  # each temporal attention, and the convolutions of each inflation block
    # "whole": over all frames at once. "frame_by_frame": where a frame has 64x64 pixels or more, one after the other,
    # and again in the backward pass: the weights of one frame lie in memory at a time. "kernel": there, on TPUs, none
    # do (`attention.splash`); on other devices frame by frame.
    attention: str = "whole"
    # "layers": what an inflation block consists of, one after the other. "kernel": on TPUs all that follows its 2D
    # convolution in two kernels, each a pass over the video (`normalized_conv`).
    inflation: str = "layers"
    # The first so many blocks have the policy "full", whatever `block` says: their values are kept longest of all. For
    # what little is missing to fit.
    full_blocks: int = 0

    def __post_init__(self):
        choices = {"attention": ATTENTION, "inflation": INFLATION}
        for field in ("block", "spatial", "temporal", *choices):
            policy, known = getattr(self, field), choices.get(field, POLICIES)
            if policy not in known:
                raise ValueError(f"remat.{field}={policy!r}: use one of {', '.join(known)}")
        if self.full_blocks < 0:
            raise ValueError(f"remat.full_blocks={self.full_blocks}: give a number of blocks, 0 for none")
        inside = {field: getattr(self, field) for field in ("spatial", "temporal")}
        if (self.block != "none" or self.full_blocks) and set(inside.values()) != {"none"}:
            raise ValueError(
                f"remat.block={self.block!r} with remat.full_blocks={self.full_blocks} covers what is inside of a "
                f"block, which would be computed a third time with {inside}: set these to 'none', or remat.block to "
                "'none' and remat.full_blocks to 0"
            )

    def policy_of_block(self, number: int) -> str:
        """The policy of a layer of the U-Net, of which the first has number 0."""
        return "full" if number < self.full_blocks else self.block


class Rematerializable(nnx.Module):
    """A module with methods that `rematerialize` is about."""

    remat = Rematerialization()


def rematerialize(unet: nnx.Module, policies: Rematerialization) -> nnx.Module:
    """Sets the policies of a U-Net, inflated or not, in place and returns it; parameters stay as they are."""
    for _, module in nnx.iter_modules(unet):
        if isinstance(module, Rematerializable):
            module.remat = policies
    return unet


def checkpointed(policy: str, function: Callable, *inputs: Any) -> Any:
    """`function(*inputs)`, of which the backward pass finds what the policy keeps.

    Args:
      policy: one of `POLICIES`.
      function: of pytrees. The modules that it calls are among its inputs: one that it closes over would be traced at
        another level than it was made at.
      *inputs: modules and arrays.
    """
    if policy == "none":
        return function(*inputs)
    return jax.checkpoint(function, policy=_KEPT[policy])(*inputs)


def rematerialized(kind: str) -> Callable[[Callable], Callable]:
    """Decorates a method of a `Rematerializable`: it runs under the policy of its kind, `spatial` or `temporal`."""

    def decorate(method: Callable) -> Callable:
        @functools.wraps(method)
        def under_policy(self: Rematerializable, *inputs: Any) -> Any:
            return checkpointed(getattr(self.remat, kind), method, self, *inputs)

        return under_policy

    return decorate
