"""Probes find what is there, and nothing where there is nothing."""

import numpy as np
import pytest
from random_runs import random_run

from benchmarks import text_probe
from lumiere_jax.data import moving_shapes


def test_a_probe_finds_what_the_features_hold():
    rng = np.random.default_rng(0)
    labels = [str(each) for each in rng.choice(["red", "green", "blue"], 600, p=[0.2, 0.3, 0.5])]
    hidden = {"red": 3.0, "green": -1.0, "blue": 0.5}
    holds = np.stack([[hidden[label] ** power for power in (1, 2)] for label in labels])
    mixed = np.concatenate([holds, rng.normal(size=(600, 4))], axis=1) @ rng.normal(size=(6, 8))
    found = text_probe.probe(mixed, labels)
    assert found.accuracy == 1.0
    assert found.commonest == pytest.approx(0.5, abs=0.1)


def test_a_probe_does_not_score_what_it_was_fitted_to():
    """More features than prompts: it knows by heart what it was fitted to, and guesses the rest."""
    rng = np.random.default_rng(0)
    labels = [str(each) for each in rng.choice(["red", "green", "blue", "cyan"], 200)]
    assert text_probe.probe(rng.normal(size=(200, 300)), labels).accuracy < 0.45


def test_features_of_a_model_with_random_parameters():
    run = random_run()
    run.config.text.length = 96  # its tokenizer spells most words
    pairs = moving_shapes.prompts(120, seed=0, duration=1)
    features = text_probe.text_features(run, [prompt for prompt, _ in pairs])
    assert {len(values) for values in features.values()} == {120}
    lines = text_probe.table(features, [scene for _, scene in pairs]).splitlines()
    assert lines[0] == "| | colour | shape | size | motion | direction |"
    assert len(lines) == 2 + len(features) + 1
