"""Fréchet distance, inception score, CLIP similarity: against scipy, closed forms and brute force."""

import inspect
import math
import pathlib

import evaluation_inputs as inputs
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from flax import nnx
from safetensors import safe_open

from lumiere_jax.evaluation import bilinear, bootstrap, published_weights
from lumiere_jax.evaluation.clip_similarity import clip_features, clip_similarity
from lumiere_jax.evaluation.frechet_video_distance import (
    FeatureStatistics,
    feature_statistics,
    frechet_distance,
    i3d_features,
)
from lumiere_jax.evaluation.inception_score import c3d_input, c3d_probabilities, inception_score, load_c3d_mean
from lumiere_jax.models.c3d import C3D, C3DConfig
from lumiere_jax.models.clip import CLIP, CLIPConfig, TowerConfig
from lumiere_jax.models.i3d import I3D, I3DConfig
from lumiere_jax.text.clip_tokenizer import CLIPTokenizer

CONVENTIONS = ("tf1_bilinear", "half_pixel", "align_corners")


def draw(seed, clips=200, features=6):
    """Correlated features, off zero."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((clips, features)) @ rng.standard_normal((features, features)) + rng.standard_normal(
        features
    )


def by_sqrtm(a, b, ddof=1):
    first, second = (np.cov(features.T, ddof=ddof) for features in (a, b))
    root = scipy.linalg.sqrtm(first @ second).real
    return np.square(a.mean(0) - b.mean(0)).sum() + np.trace(first + second - 2 * root)


@pytest.mark.parametrize("ddof", [0, 1])
def test_frechet_distance_is_scipys(ddof):
    a, b = draw(0, 50), draw(1, 70)
    found = frechet_distance(FeatureStatistics.of(a), FeatureStatistics.of(b), ddof=ddof)
    assert found == pytest.approx(by_sqrtm(a, b, ddof), rel=1e-10)
    assert abs(by_sqrtm(a, b, 0) / by_sqrtm(a, b, 1) - 1) > 1e-3


def statistics(mean, covariance, count=11):
    """Of clips with exactly this mean and (unbiased) covariance."""
    return FeatureStatistics(count, np.array(mean, float), np.array(covariance, float) * (count - 1))


def test_frechet_distance_of_covariances_that_commute():
    """With the same axes it is the distance of the means and of the standard deviations along each."""
    axes = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0]
    first, second = np.array([1.0, 4.0, 9.0, 0.0]), np.array([2.25, 4.0, 0.25, 1.0])
    a = statistics([0, 1, 0, 2], axes @ np.diag(first) @ axes.T)
    b = statistics([3, 1, 4, 2], axes @ np.diag(second) @ axes.T)
    expected = 25 + np.square(np.sqrt(first) - np.sqrt(second)).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_of_fewer_clips_than_features():
    """Singular covariances: no complex numbers, 0 for the same clips, symmetric."""
    a, b = FeatureStatistics.of(draw(0, 8, 30)), FeatureStatistics.of(draw(1, 9, 30))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-10 * np.trace(a.covariance()))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-10)
    assert frechet_distance(a, b) == pytest.approx(by_sqrtm(draw(0, 8, 30), draw(1, 9, 30)), rel=1e-6)


def assert_same(a, b):
    assert a.count == b.count
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-12)
    np.testing.assert_allclose(a.scatter, b.scatter, rtol=1e-9, atol=1e-9 * np.abs(b.scatter).max())


def test_statistics_of_parts():
    """Clips one by one, or merged in any order, are all clips at once; also far from zero, in float32."""
    features = (draw(0, 60) + 1000).astype(np.float32)
    whole = FeatureStatistics.of(features)
    np.testing.assert_allclose(whole.covariance(), np.cov(features.T.astype(np.float64)), rtol=1e-12)
    np.testing.assert_allclose(whole.covariance(0), np.cov(features.T.astype(np.float64), ddof=0), rtol=1e-12)
    assert whole.scatter.dtype == np.float64
    one_by_one = FeatureStatistics.of(features[:1])
    for row in features[1:]:
        one_by_one = one_by_one.add(row[None])
    assert_same(one_by_one, whole)
    first, second, third = (FeatureStatistics.of(part) for part in np.split(features, [7, 40]))
    assert_same(first.merge(second).merge(third), whole)
    assert_same(third.merge(first.merge(second)), whole)


def test_statistics_of_batches_of_videos():
    """Any function of videos is a feature function."""
    videos = np.random.default_rng(0).uniform(-1, 1, (10, 2, 4, 4, 3))

    def features(batch):
        return batch.mean((1, 2, 3))

    assert_same(feature_statistics(features, np.split(videos, [3, 4])), FeatureStatistics.of(features(videos)))
    with pytest.raises(ValueError, match="no batches of videos"):
        feature_statistics(features, [])


def test_statistics_on_disk(tmp_path):
    made = FeatureStatistics.of(draw(0))
    made.save(tmp_path / "real.npz")
    read = FeatureStatistics.load(tmp_path / "real.npz")
    assert read.count == made.count
    np.testing.assert_array_equal(read.mean, made.mean)
    np.testing.assert_array_equal(read.scatter, made.scatter)
    assert [file.name for file in tmp_path.iterdir()] == ["real.npz"]
    np.savez(tmp_path / "other.npz", mean=made.mean)
    with pytest.raises(ValueError, match=r"holds \['mean'\], not the count"):
        FeatureStatistics.load(tmp_path / "other.npz")


def test_statistics_that_cannot_be():
    one = FeatureStatistics.of(draw(0, 1))
    with pytest.raises(ValueError, match="1 clips: a covariance needs 2 or more"):
        frechet_distance(one, FeatureStatistics.of(draw(1)))
    with pytest.raises(ValueError, match=r"2 clips: .* more than ddof=2"):
        FeatureStatistics.of(draw(0, 2)).covariance(2)
    with pytest.raises(ValueError, match="features of 6 and 5 numbers"):
        frechet_distance(FeatureStatistics.of(draw(0)), FeatureStatistics.of(draw(0, features=5)))
    with pytest.raises(ValueError, match="features of 6 and 5 numbers"):
        FeatureStatistics.of(draw(0)).add(draw(0, features=5))
    with pytest.raises(ValueError, match="no clips"):
        FeatureStatistics.of(draw(0)[:0])
    broken = draw(0)
    broken[3, 1] = np.nan
    with pytest.raises(ValueError, match=r"the features of clips \[3\] are not finite"):
        FeatureStatistics.of(broken)


def by_hand(picture, height, width, convention):
    """Bilinear interpolation, pixel by pixel."""
    old_height, old_width = picture.shape[:2]

    def place(i, old, new):
        where = {
            "tf1_bilinear": i * old / new,
            "half_pixel": (i + 0.5) * old / new - 0.5,
            "align_corners": i * (old - 1) / (new - 1),
        }[convention]
        where = min(max(where, 0.0), old - 1.0)
        return int(where), min(int(where) + 1, old - 1), where - int(where)

    out = np.zeros((height, width, picture.shape[2]))
    for i in range(height):
        top, bottom, y = place(i, old_height, height)
        for j in range(width):
            left, right, x = place(j, old_width, width)
            upper = (1 - x) * picture[top, left] + x * picture[top, right]
            lower = (1 - x) * picture[bottom, left] + x * picture[bottom, right]
            out[i, j] = (1 - y) * upper + y * lower
    return out


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("size", [(9, 4), (3, 14), (5, 7)])
def test_resizing_is_as_by_hand(convention, size):
    picture = inputs.picture()
    found = bilinear.resized(jnp.asarray(picture)[None], *size, convention)[0]
    np.testing.assert_allclose(found, by_hand(picture, *size, convention), atol=1e-6)


@pytest.mark.parametrize("convention", CONVENTIONS[1:])
def test_resizing_is_pytorchs(convention):
    with safe_open(pathlib.Path(inputs.__file__).with_name("evaluation_networks.safetensors"), "numpy") as file:
        expected = file.get_tensor(f"resized_{convention}")
    np.testing.assert_allclose(bilinear.resized(jnp.asarray(inputs.picture()), 9, 4, convention), expected, atol=1e-6)


def test_conventions_differ():
    """On a ramp each says where a pixel lies."""
    ramp = jnp.broadcast_to(jnp.arange(4.0)[:, None], (1, 4, 4, 1))
    found = {name: bilinear.resized(ramp, 4, 8, name)[0, 0, :, 0].tolist() for name in CONVENTIONS}
    assert found["tf1_bilinear"] == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3]
    assert found["half_pixel"] == [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]
    assert found["align_corners"] == pytest.approx([3 * i / 7 for i in range(8)])
    with pytest.raises(ValueError, match="convention='nearest': give one of"):
        bilinear.resized(ramp, 4, 8, "nearest")


def test_i3d_features_are_of_resized_frames():
    """Of either convention; the two are not the same features."""
    i3d = I3D(I3DConfig(classes=5).narrowed(16), rngs=nnx.Rngs(0))
    videos = np.random.default_rng(0).uniform(-1, 1, (1, 9, 20, 28, 3)).astype(np.float32)
    network, found = nnx.jit(lambda network, x: network(x)), {}
    for convention in CONVENTIONS[:2]:
        resized = np.stack([by_hand(frame, 224, 224, convention) for frame in videos[0]])[None]
        found[convention] = i3d_features(i3d, convention)(videos)
        expected = network(i3d, jnp.asarray(resized, jnp.float32))
        np.testing.assert_allclose(found[convention], expected, atol=1e-5 * np.abs(expected).max())
    assert np.abs(found["tf1_bilinear"] - found["half_pixel"]).max() > 1e-2 * np.abs(found["half_pixel"]).max()
    assert inspect.signature(i3d_features).parameters["resize"].default == "tf1_bilinear"
    with pytest.raises(ValueError, match="resize='align_corners': give tf1_bilinear or half_pixel"):
        i3d_features(i3d, "align_corners")


def test_inception_score_of_sure_and_unsure_classifiers():
    assert inception_score(np.eye(7)) == pytest.approx((7, 0))
    assert inception_score(np.full((5, 7), 1 / 7)) == pytest.approx((1, 0))
    assert inception_score(np.repeat(np.eye(3), 4, 0)[:, [0, 1, 2]]) == pytest.approx((3, 0))


def test_inception_score_is_its_definition():
    p = np.random.default_rng(0).dirichlet(np.full(9, 0.3), 30)

    def score(part):
        marginal = part.mean(0)
        return math.exp(np.mean([sum(q * math.log(q / m) for q, m in zip(row, marginal, strict=True)) for row in part]))

    assert inception_score(p).mean == pytest.approx(score(p), rel=1e-12)
    parts = [score(part) for part in np.split(p, 3)]
    assert inception_score(p, 3) == pytest.approx((np.mean(parts), np.std(parts)), rel=1e-12)


def test_inception_scores_that_cannot_be():
    with pytest.raises(ValueError, match="probabilities are to be 0 or more and to sum to 1"):
        inception_score(np.ones((3, 4)))
    with pytest.raises(ValueError, match="splits=4: give 1 to 3"):
        inception_score(np.eye(3), 4)


def test_c3d_sees_bgr_less_the_mean(tmp_path):
    """By hand, from the `.npz` of the mean to the network's input."""
    mean = np.random.default_rng(0).uniform(80, 120, (3, 16, 128, 171)).astype(np.float32)
    np.savez(tmp_path / "mean2.npz", mean=mean)
    video = np.random.default_rng(1).uniform(-1, 1, (1, 16, 10, 14, 3)).astype(np.float32)
    found = np.asarray(c3d_input(jnp.asarray(video), load_c3d_mean(tmp_path / "mean2.npz")))
    for t in (0, 9):
        rgb = by_hand(video[0, t], 112, 112, "align_corners") * 128 + 128
        for channel in range(3):
            expected = rgb[..., 2 - channel] - mean[channel, t, 8:120, 8:120]
            np.testing.assert_allclose(found[0, t, ..., channel], expected, atol=1e-4)
    np.savez(tmp_path / "batched.npz", mean=mean[None])
    np.testing.assert_array_equal(
        load_c3d_mean(tmp_path / "batched.npz"), mean[:, :, 8:120, 8:120].transpose(1, 2, 3, 0)
    )
    np.savez(tmp_path / "small.npz", mean=mean[..., :112])
    with pytest.raises(ValueError, match=r"its `mean` is to be \[3, 16, 128, 171\], not \[3, 16, 128, 112\]"):
        load_c3d_mean(tmp_path / "small.npz")


def test_c3d_probabilities_are_of_prepared_clips():
    c3d = C3D(C3DConfig((2, 2, 3, 3, 4, 4, 5, 5), (8, 8), 6), rngs=nnx.Rngs(0))
    mean = np.full((16, 112, 112, 3), 100.0, np.float32)
    video = np.random.default_rng(1).uniform(-1, 1, (2, 16, 24, 24, 3)).astype(np.float32)
    found = c3d_probabilities(c3d, mean)(video)
    np.testing.assert_allclose(found, c3d(c3d_input(jnp.asarray(video), mean)), atol=1e-6)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
    with pytest.raises(ValueError, match="clips of 80 frames: C3D sees 16"):
        c3d_probabilities(c3d, mean)(np.zeros((1, 80, 24, 24, 3)))


def test_clip_similarity_is_the_mean_cosine_of_the_frames():
    frames = np.array([[[1.0, 0], [0, 3], [-1, 0]], [[2, 2], [1, 0], [1, 0]]])
    prompts = np.array([[2.0, 0], [0, 1]])
    np.testing.assert_allclose(clip_similarity(frames, prompts), [0, 0.5**0.5 / 3], atol=1e-15)


class TokensOfLengths(CLIPTokenizer):
    """Without `tokenizers`: a prompt is its length; 19 ends it."""

    def encode(self, prompts, length=77):
        return np.array([[1, len(prompt), 19, 19, 19] for prompt in prompts], np.int32)[:, :length]


def test_clip_features_of_frames_and_prompts():
    tower = TowerConfig(8, 16, 1, 2)
    clip = CLIP(CLIPConfig(tower, tower, 6, 20, 5, image_size=20, patch_size=10), rngs=nnx.Rngs(0))
    features = clip_features(clip, TokensOfLengths(None))
    video = np.random.default_rng(0).uniform(-1, 1, (2, 3, 30, 40, 3)).astype(np.float32)
    frames, prompts = features.frames(video), features.prompts(["a", "bcd"])
    assert (frames.shape, prompts.shape) == ((2, 3, 6), (2, 6))
    for vectors in (frames, prompts):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose(features.frames(video[1:, 2:])[0, 0], frames[1, 2], atol=1e-6)
    assert clip_similarity(frames, prompts).shape == (2,)


def test_bootstrap_of_a_mean():
    """Near the normal approximation; the same seed, the same interval."""
    values = np.random.default_rng(0).standard_normal(400)
    interval = bootstrap.bootstrap_interval(lambda clips: values[clips].mean(), len(values), resamples=4000)
    half = 1.96 * values.std() / 20
    assert interval == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05 * half)
    again = bootstrap.bootstrap_interval(lambda clips: values[clips].mean(), len(values), resamples=4000)
    assert again == interval
    narrow = bootstrap.bootstrap_interval(lambda clips: values[clips].mean(), len(values), level=0.5, seed=1)
    assert narrow.high - narrow.low < 0.5 * (interval.high - interval.low)
    with pytest.raises(ValueError, match="clips=1"):
        bootstrap.bootstrap_interval(lambda clips: 0.0, 1)


def test_bootstrap_takes_any_score():
    features = [draw(0, 40), draw(1, 40)]

    def score(clips):
        return frechet_distance(*(FeatureStatistics.of(part[clips]) for part in features))

    interval = bootstrap.bootstrap_interval(score, 40, resamples=50)
    assert 0 < interval.low < interval.high


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        published_weights.find(published_weights.I3D, tmp_path)
    message = str(error.value)
    for part in (str(tmp_path / "i3d_pretrained_400.pt"), published_weights.I3D.url, published_weights.I3D.sha256):
        assert part in message
    with pytest.raises(FileNotFoundError, match="none is published: it cannot be checked"):
        published_weights.find(published_weights.C3D, tmp_path / "c3d.npz")


def test_provenance_of_weights(tmp_path):
    (tmp_path / "conv3d_deepnetA_ucf.npz").write_bytes(b"abc")
    (tmp_path / "i3d.pt").write_bytes(b"abc")
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    found = published_weights.provenance(published_weights.C3D, tmp_path)
    assert (found.file, found.sha256, found.is_published) == ("conv3d_deepnetA_ucf.npz", sha256, None)
    assert published_weights.provenance(published_weights.I3D, tmp_path / "i3d.pt").is_published is False
    published = published_weights.PublishedFile("i3d.pt", "", "", sha256)
    assert published_weights.provenance(published, tmp_path).is_published is True
