"""docs/model_sizes.md says what the configs and the compiler say."""

import pathlib

import pytest

from benchmarks import model_sizes
from lumiere_jax.abstract_model import abstract_model
from lumiere_jax.models import parameter_partition
from lumiere_jax.models.rematerialization import CHOICES

DOCUMENT = pathlib.Path(model_sizes.__file__).parent.parent / "docs" / "model_sizes.md"

LINES = DOCUMENT.read_text().splitlines()


def row(variant):
    """The cells of a variant's row in the first table of the document."""
    line = next(line for line in LINES if f".py:{variant}` |" in line)
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize("variant", model_sizes.VARIANTS)
def test_parameters_of_the_document(variant):
    _, trained, frozen = parameter_partition.split(abstract_model(model_sizes.get_config(variant)))
    counts = [parameter_partition.count(frozen), parameter_partition.count(trained)]
    assert row(variant)[2:4] == [f"{count:,}" for count in counts]


def test_row_of_the_demo():
    size = model_sizes.measure("demo")
    assert model_sizes.size_table([size]).splitlines()[-1] in DOCUMENT.read_text()
    # A frozen convolution costs two forward passes in a training step, a trained one three.
    assert 2.0 < size.step / size.forward < 2.3
    assert 2.9 < size.full_step / size.forward < 3.1


def test_row_of_the_demo_at_1024_pixels():
    measured = {"demo_4x": model_sizes.measure_enlarged("demo_4x")}
    assert model_sizes.enlarged_table(measured).splitlines()[-1] in LINES


def test_activations_are_what_the_backward_pass_reads():
    config = model_sizes.get_config("test")
    small = model_sizes.activation_bytes(config, abstract_model(config))
    config.clip.frames = 2 * config.clip.frames
    large = model_sizes.activation_bytes(config, abstract_model(config))
    config.compute_dtype = "bfloat16"
    half = model_sizes.activation_bytes(config, abstract_model(config))
    assert 1.9 * small < large < 2.1 * small  # text does not grow with the frames, attention over them does with T^2
    assert 0.45 * large < half < 0.7 * large  # statistics of the normalisations stay float32


def test_activations_of_the_demo_with_every_policy():
    start = next(i for i, line in enumerate(LINES) if line == "<!-- remat -->")
    assert "`demo`, GB" in LINES[start + 1]
    for line, policies in zip(LINES[start + 3 :], CHOICES, strict=False):
        config = model_sizes.with_remat(model_sizes.get_config("demo"), policies)
        kept = model_sizes.activation_bytes(config, abstract_model(config))
        assert line.split(" | ")[1] == f"{kept / 1e9:.3g}", line


def test_table_of_policies():
    measured = {"demo": [(3_000_000_000, 2.0 + number) for number in range(len(CHOICES))]}
    heading, rule, first, second, *_ = model_sizes.remat_table({"demo": 1.0}, measured).splitlines()
    assert heading == "| `config.remat` | `demo`, GB | step / forward |"
    assert rule == "|---|---|---|"
    assert (first, second) == ("| none | 3 | 2.00 |", "| block: products | 3 | 3.00 |")


def test_tables_are_put_at_their_marks():
    document = "before\n<!-- a -->\nold\n<!-- end -->\nbetween\n<!-- b -->\n<!-- end -->\nafter\n"
    new = model_sizes.with_tables(document, {"a": "| 1 |", "b": "| 2 |"})
    assert new == "before\n<!-- a -->\n| 1 |\n<!-- end -->\nbetween\n<!-- b -->\n| 2 |\n<!-- end -->\nafter\n"
    with pytest.raises(ValueError, match="no mark <!-- c -->"):
        model_sizes.with_tables(document, {"c": ""})
