"""The grammar of `moving_shapes` captions: "a small red ball bounces on the floor, on a white background"."""

import numpy as np

from lumiere_jax.data.shapes_scene import MovingObject, Scene

SIZE_WORDS = {"small": ("small", "little"), "medium": ("", "medium-sized"), "large": ("large", "big")}
SHAPE_WORDS = {
    "circle": ("circle", "ball"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
}
DIRECTION_WORDS = {
    "right": ("right", "to the right"),
    "left": ("left", "to the left"),
    "up": ("up", "upwards"),
    "down": ("down", "downwards"),
    "up_right": ("up and to the right", "towards the upper right"),
    "up_left": ("up and to the left", "towards the upper left"),
    "down_right": ("down and to the right", "towards the lower right"),
    "down_left": ("down and to the left", "towards the lower left"),
}
# What the object is doing as ("... moving", "... moves"): both forms are said.
MOTION_WORDS = {
    "translating": (
        ("moving {direction}", "moves {direction}"),
        ("sliding {direction}", "slides {direction}"),
        ("drifting {direction}", "drifts {direction}"),
    ),
    "bouncing": (
        ("bouncing", "bounces"),
        ("bouncing up and down", "bounces up and down"),
        ("bouncing on the floor", "bounces on the floor"),
    ),
    "circling": (
        ("moving in a circle", "moves in a circle"),
        ("circling around the center", "circles around the center"),
    ),
    "swinging": (
        ("swinging", "swings"),
        ("swinging back and forth", "swings back and forth"),
        ("swinging from side to side", "swings from side to side"),
    ),
    "growing": (("growing", "grows"), ("getting bigger", "gets bigger")),
    "shrinking": (("shrinking", "shrinks"), ("getting smaller", "gets smaller")),
    "spinning": (("spinning", "spins"), ("rotating", "rotates"), ("turning around", "turns around")),
}
BACKGROUND_WORDS = {
    "black": "black background",
    "white": "white background",
    "gray": "gray background",
    "gradient": "background that fades from light to dark",
}
_BACKGROUND_PROBABILITY = 0.4  # How often the background is mentioned.


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """Words a scene; `rng` chooses between synonyms and whether the background is mentioned.

    Every caption names the colour, shape and motion of each object, in the order from back to front.
    """
    finite = bool(rng.integers(2))
    sentences = [_describe(moving, finite, rng) for moving in scene.objects]
    text = f" {'while' if finite else 'and'} ".join(sentences)
    if rng.random() < _BACKGROUND_PROBABILITY:
        text += f" on a {BACKGROUND_WORDS[scene.background]}"
    return text


def _describe(moving: MovingObject, finite: bool, rng: np.random.Generator) -> str:
    noun = (rng.choice(SIZE_WORDS[moving.size]), moving.colour, rng.choice(SHAPE_WORDS[moving.shape]))
    verb = str(rng.choice(MOTION_WORDS[moving.motion], axis=0)[int(finite)])
    if moving.motion == "translating":
        verb = verb.format(direction=rng.choice(DIRECTION_WORDS[moving.direction]))
    return " ".join(["a", *filter(None, noun), verb])
