"""Probes find what is there, and nothing where there is nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_runs import random_run

from benchmarks import text_probe
from lumiere_jax.data import moving_shapes
from lumiere_jax.data.shapes_captions import DIRECTION_WORDS
from lumiere_jax.data.shapes_scene import DIRECTIONS
from lumiere_jax.models.spatial_layers import SpatialAttention
from lumiere_jax.pipelines.generation import sampling_settings


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
    run.config.text.length = 128  # its tokenizer spells most words
    pairs = moving_shapes.prompts(120, seed=0, duration=1)
    features = text_probe.text_features(run, [prompt for prompt, _ in pairs])
    assert {len(values) for values in features.values()} == {120}
    # What pooling adds to the embedding, and nothing where cross-attention takes nothing of the text.
    unet, time = run.model.unet, jnp.full(120, 500.0)
    text = run.model.embed_text(jnp.asarray(run.tokenizer.encode([prompt for prompt, _ in pairs], 128)[0]))
    added = unet.condition(time, text, None, None)[0] - unet.time_embedding(time, text.dtype)
    np.testing.assert_allclose(features["pooled, added to the time embedding"], added, atol=1e-5)
    np.testing.assert_allclose(features["text encoder"], text.mean(1), atol=1e-6)
    attentions = [module for _, module in nnx.iter_modules(unet) if isinstance(module, SpatialAttention)]
    values = features["values of cross-attention"]
    assert values.shape == (120, sum(module.to_out.bias.shape[0] for module in attentions))
    for module in attentions:
        module.add_v_proj.kernel[...] *= 0.0
        module.add_v_proj.bias[...] *= 0.0
    assert np.abs(values).max() > 0.01
    none = text_probe.text_features(run, [prompt for prompt, _ in pairs])["values of cross-attention"]
    np.testing.assert_array_equal(none, 0.0)
    lines = text_probe.features_table(features, [scene for _, scene in pairs]).splitlines()
    assert lines[0] == "| | colour | shape | size | motion | direction |"
    assert len(lines) == 2 + len(features) + 1


def translating(count):
    pairs = moving_shapes.prompts(10 * count, seed=0, duration=2)
    return list(zip(*[pair for pair in pairs if pair[1].objects[0].motion == "translating"][:count], strict=True))


def test_one_word_of_a_prompt_is_replaced():
    for prompt, scene in zip(*translating(40), strict=True):
        other = text_probe.with_another("direction", prompt, scene)
        assert _way_in(prompt) == scene.objects[0].direction
        np.testing.assert_allclose(DIRECTIONS[_way_in(other)], np.negative(DIRECTIONS[_way_in(prompt)]), atol=1e-9)
        for name in ("colour", "shape"):
            both = prompt.split(), text_probe.with_another(name, prompt, scene).split()
            assert sum(before != after for before, after in zip(*both, strict=True)) == 1


def _way_in(caption):
    """The direction whose words, the longest that are in it, a caption ends with (before a background)."""
    words = caption.split(" on a ")[0]
    found = [(len(said), way) for way, both in DIRECTION_WORDS.items() for said in both if words.endswith(said)]
    return max(found)[1]


def test_a_wrong_word_costs_what_the_loss_with_it_is_more(monkeypatch):
    """The loss restated by hand; and no cost where the text stays the same."""
    run = random_run()
    run.config.text.length = 128
    prompts, scenes = map(list, translating(8))
    found = text_probe.losses(run, text_probe.rendered(run, scenes), prompts, -2.0)
    schedule = sampling_settings(run.config).schedule
    time = schedule.time_at_log_snr(jnp.full(8, -2.0))
    alpha, sigma = schedule.alpha_sigma(time[0])
    clean = np.stack([moving_shapes.render(scene, 16, 4, 8.0) for scene in scenes]).astype(np.float32) / 127.5 - 1
    noisy = alpha * clean + sigma * jax.random.normal(jax.random.key(0), clean.shape)
    ids, _ = run.tokenizer.encode(prompts, 128)
    prediction = run.model.predict(noisy, 1000.0 * time, run.model.embed_text(jnp.asarray(ids)))
    np.testing.assert_allclose(found, np.square(prediction - clean).mean((1, 2, 3, 4)), rtol=1e-4)

    monkeypatch.setattr(text_probe, "LOG_SNRS", (-2.0,))
    *_, row = text_probe.words_table(run, prompts, scenes).splitlines()
    wrong = [text_probe.with_another("colour", *pair) for pair in zip(prompts, scenes, strict=True)]
    more = (text_probe.losses(run, clean, wrong, -2.0) - found) / found.mean()
    assert np.abs(more).max() > 1e-6
    assert row.startswith(f"| -2 | {found.mean():.4f} | {100 * more.mean():+.1f} ± ")
    monkeypatch.setattr(text_probe, "with_another", lambda attribute, prompt, scene: prompt)
    *_, row = text_probe.words_table(run, prompts, scenes).splitlines()
    assert row == f"| -2 | {found.mean():.4f} |" + " +0.0 ± 0.0 % |" * 3
