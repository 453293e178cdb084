"""The variants over DeepFloyd IF at full size, by shapes alone; and what is refused before any weights are there."""

import pathlib

import pytest

from configs import deepfloyd_if, ssr, stunet
from lumiere_jax import train
from lumiere_jax.abstract_model import abstract_model
from lumiere_jax.models import parameter_partition

DOCUMENT = pathlib.Path(__file__).parent.parent / "docs" / "pretrained_weights.md"
# variant: parameters of the published image model, and of the temporal layers over it.
COUNTS = {
    "if_m": (371_605_830, 94_326_720),
    "if_l": (935_365_830, 261_864_000),
    "if_xl": (4_304_695_110, 1_266_809_280),
    "if_ii_m": (482_483_334, 132_648_576),
    "if_ii_l": (1_243_277_190, 368_250_240),
}


def get_config(variant):
    return (stunet if variant in deepfloyd_if.STAGE_1 else ssr).get_config(variant)


def count(config, **temporal):
    """Numbers of parameters of the image model and of the temporal layers, with these fields of `config.temporal`."""
    config = config.copy_and_resolve_references()
    config.temporal.update(temporal)
    _, trained, frozen = parameter_partition.split(abstract_model(config))
    return parameter_partition.count(frozen), parameter_partition.count(trained)


@pytest.mark.parametrize("variant", COUNTS)
def test_parameter_counts(variant):
    config = get_config(variant)
    spatial, temporal = count(config)
    assert (spatial, temporal) == COUNTS[variant]
    for number in (spatial, temporal):
        assert f"{number:,}" in DOCUMENT.read_text()


def test_temporal_layers_are_sized_by_the_config():
    config = get_config("if_tiny")
    _, temporal = count(config)
    for field, value in {"conv_kernel": 1, "spatial_kernel": 1, "attention_layers": 2, "resampler_kernel": 5}.items():
        assert count(config, **{field: value})[1] != temporal, field
    with pytest.raises(ValueError, match=r"strides \(2, 2\): give one positive number for each of the 1 spatial"):
        count(config, strides=(2, 2))
    with pytest.raises(ValueError, match="attention_head_dim=64 must be even and divide the 16 channels"):
        count(config, attention_head_dim=64)


@pytest.mark.parametrize("variant", [*deepfloyd_if.STAGE_1, *deepfloyd_if.STAGE_2])
def test_without_imported_weights_nothing_is_trained(variant, tmp_path):
    config = get_config(variant)
    with pytest.raises(ValueError, match=rf"init_from is empty.*{config.image_model.pretrained}.*import_weights"):
        train.train(config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_clip_is_the_papers():
    for variant in ("if_m", "if_l", "if_xl"):
        config = get_config(variant)
        assert config.clip.to_dict() == {"frames": 80, "fps": 16.0, "size": 128, "crop_from": 0}
        assert config.temporal.strides == (2, 2, 1)
        assert (config.diffusion.schedule, config.diffusion.prediction) == ("discrete_cosine", "epsilon")
        assert config.image_model.unet.out_channels == 6


def test_stages_are_not_mixed_up():
    with pytest.raises(ValueError, match=r"stunet\.py has no variant 'if_ii_m'"):
        stunet.get_config("if_ii_m")
    with pytest.raises(ValueError, match=r"ssr\.py has no variant 'if_m'"):
        ssr.get_config("if_m")
