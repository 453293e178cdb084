"""Which parameters a stage trains: decided here, by the parameter's type and by nothing else.

TemporalParam   added by inflation. The paper trains "the newly added parameters" alone, so a model that has any
                trains exactly these.
nnx.Param       trained in a model without temporal layers (the text-to-image model), frozen beside them.
FrozenParam     never trained: a pre-trained text encoder.
"""

import jax
from flax import nnx

from lumiere_jax.models.temporal import TemporalParam


class FrozenParam(nnx.Variable):
    """A parameter that no stage trains."""


def freeze(module: nnx.Module) -> nnx.Module:
    """Turns every parameter of `module` into a `FrozenParam`, in place, and returns the module."""
    for _, child in nnx.iter_modules(module):
        for name, variable in vars(child).items():
            if isinstance(variable, nnx.Param):
                setattr(child, name, FrozenParam(variable.get_value()))
    return module


def trained(model: nnx.Module) -> type[nnx.Param]:
    """The type of the parameters that are trained: `TemporalParam` if the model has any, else `nnx.Param`."""
    variables = (leaf for _, leaf in nnx.to_flat_state(nnx.state(model)))
    return TemporalParam if any(isinstance(leaf, TemporalParam) for leaf in variables) else nnx.Param


def split(model: nnx.Module) -> tuple[nnx.GraphDef, dict, dict]:
    """`(graphdef, trained parameters, frozen parameters)`, both nested dicts; `nnx.merge` of the three is the model."""
    graphdef, trained_state, frozen_state = nnx.split(model, trained(model), ...)
    return graphdef, nnx.to_pure_dict(trained_state), nnx.to_pure_dict(frozen_state)


def count(parameters: dict) -> int:
    """Number of scalars."""
    return sum(leaf.size for leaf in jax.tree.leaves(parameters))
