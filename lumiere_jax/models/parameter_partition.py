"""Which parameters a stage trains: decided here, by the parameter's type and by nothing else.

The paper trains "the newly added parameters" and keeps the text-to-image model's fixed: once a U-Net is inflated,
the trained parameters are exactly those of type `TemporalParam`. A model without temporal layers is trained whole.
"""

from flax import nnx

from lumiere_jax.models.temporal import TemporalParam


def trained(model: nnx.Module) -> type[nnx.Param]:
    """The type of the parameters that are trained: `TemporalParam` if the model has any, else every `nnx.Param`."""
    variables = (leaf for _, leaf in nnx.to_flat_state(nnx.state(model)))
    return TemporalParam if any(isinstance(leaf, TemporalParam) for leaf in variables) else nnx.Param


def split(model: nnx.Module) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """`(graphdef, trained parameters, frozen parameters)`; `nnx.merge` of the three is the model."""
    return nnx.split(model, trained(model), ...)
