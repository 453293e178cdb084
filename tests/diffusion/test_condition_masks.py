"""The masks that the conditional model is trained with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import conditional
from lumiere_jax import train_step
from lumiere_jax.diffusion.condition_masks import _KINDS, draw_masks
from lumiere_jax.diffusion.noise_schedule import from_config

SHAPE = (6, 24, 32)
KINDS_OF_FRAMES = ("first_frame", "first_and_last", "any_frames", "every_fourth_frame")


def drawn(kind, clips=64):
    return np.asarray(draw_masks(jax.random.key(0), {kind: 1.0}, clips, SHAPE))[..., 0]


def test_whole_frames():
    assert not drawn("nothing").any()
    assert drawn("everything").all()
    frames = {kind: drawn(kind)[:, :, 0, 0] for kind in KINDS_OF_FRAMES}
    assert frames["first_frame"].tolist() == [[1, 0, 0, 0, 0, 0]] * 64
    assert frames["first_and_last"].tolist() == [[1, 0, 0, 0, 0, 1]] * 64
    assert frames["every_fourth_frame"].tolist() == [[1, 0, 0, 0, 1, 0]] * 64
    assert set(frames["any_frames"].sum(1)) == set(range(7))
    for kind, of_frame in frames.items():
        np.testing.assert_array_equal(drawn(kind), np.broadcast_to(of_frame[..., None, None], (64, *SHAPE)))


@pytest.mark.parametrize("kind", ["still_box", "moving_box"])
def test_boxes_are_boxes(kind):
    moved = set()
    for mask in drawn(kind):
        corners = []
        for frame in mask:
            rows, columns = (np.flatnonzero((frame == 0).any(axis)) for axis in (1, 0))
            assert (frame[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] == 0).all()
            for found, side in ((rows, SHAPE[1]), (columns, SHAPE[2])):
                assert 0.25 * side - 1 <= len(found) <= 0.75 * side + 1
            corners.append((rows[0], columns[0]))
        moved.add(corners[0] != corners[-1])
    assert (True in moved) == (kind == "moving_box")


def test_a_region_is_a_still_box_but_for_the_first_frame():
    masks = drawn("region")
    assert masks[:, 0].all()
    assert (masks[:, 1:] == masks[:, 1:2]).all()
    assert not masks[:, 1].all((1, 2)).any()


def test_a_border_is_around_a_rectangle():
    sides = set()
    for mask in drawn("border"):
        assert (mask == mask[0]).all()
        rows, columns = (np.flatnonzero(mask[0].any(axis)) for axis in (1, 0))
        assert mask[0, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        sides.add((rows[0] > 0, rows[-1] < 23, columns[0] > 0, columns[-1] < 31))
    assert len(sides) > 10  # of 16: any of the four


def test_a_brush_stroke_is_thin_and_connected():
    for mask in drawn("brush", 16):
        assert (mask == mask[0]).all()
        stroke = mask[0] == 0
        assert 0 < stroke.mean() < 0.6
        reached = np.zeros_like(stroke)
        reached[tuple(np.argwhere(stroke)[0])] = True
        for _ in range(stroke.size):
            padded = np.pad(reached, 1)
            shifts = [padded[y : y + 24, x : x + 32] for y in range(3) for x in range(3)]
            grown = stroke & np.any(shifts, axis=0)
            if (grown == reached).all():
                break
            reached = grown
        assert (reached == stroke).all()


def test_kinds_come_as_often_as_the_config_says():
    shares = {"nothing": 3.0, "everything": 1.0}
    masks = np.asarray(draw_masks(jax.random.key(1), shares, 2000, (1, 1, 1)))
    assert masks.mean() == pytest.approx(0.25, abs=0.03)
    # Keyframes are temporal super-resolution's (configs/keyframe_cascade.py).
    assert {*conditional.get_config().conditioning.masks, "every_fourth_frame"} == set(_KINDS)


def test_unknown_kinds_and_shares():
    with pytest.raises(ValueError, match=r"there is no kind 'frist': use nothing, "):
        draw_masks(jax.random.key(0), {"frist": 1.0}, 1, SHAPE)
    for shares in ({"nothing": 0.0}, {"nothing": -1.0, "border": 2.0}, {"nothing": float("nan")}, {}):
        with pytest.raises(ValueError, match="give shares from 0, not all of them 0"):
            draw_masks(jax.random.key(0), shares, 1, SHAPE)


class Recorder:
    """Stands where the model does and keeps what it is given."""

    def embed_text(self, tokens):
        return tokens

    def predict(self, x_t, time, text, beside, noise_level):
        self.seen = beside, noise_level
        return x_t


def test_training_shows_the_masked_clip_and_the_mask():
    video = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (4, 3, 8, 8, 3)), jnp.float32)
    batch = train_step.Batch(video, jnp.zeros((4, 2), jnp.int32))
    masks = (("first_frame", 1.0), ("moving_box", 1.0))
    objective = train_step.Objective(from_config("cosine"), masks=masks)

    @jax.jit
    def shown(key):
        model = Recorder()
        draws = train_step._draw(jnp.full((4,), 0.5), key, key, video, objective)
        train_step._loss(model, batch, draws, objective)
        assert model.seen[1] is None
        return model.seen[0], draws.mask

    beside, mask = shown(jax.random.key(0))
    np.testing.assert_array_equal(mask, draw_masks(jax.random.key(0), dict(masks), 4, (3, 8, 8)))
    np.testing.assert_array_equal(beside, jnp.concatenate([jnp.where(mask > 0, video, 0), mask], axis=-1))
    assert not np.array_equal(mask, shown(jax.random.key(1))[1])
