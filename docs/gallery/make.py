"""Makes the gallery with the model that ships: `python docs/gallery/make.py`, in the repository's root.

Clips of each application, the README's moving picture, and the curves of docs/model_card.md from the histories of its
trainings in docs/lumiere_shapes. What is given (picture, video, mask) is drawn: a blue circle that moves to the left,
and a box in the middle. A style is trained first, in demo/style, if it is not there yet.
"""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from lumiere_jax.data import moving_shapes, video_io
from lumiere_jax.data.shapes_scene import Scene
from lumiere_jax.provenance.metadata import file_metadata
from lumiere_jax.train_history import curve

HERE = pathlib.Path(__file__).parent
SHAPES = "pretrained/lumiere_shapes"
STYLE = "demo/style"
SIZE, FRAMES, FPS = 64, 40, 8  # of what is given
SHOWN = 3  # pixels of a side in moving.gif for one of a clip's
# Of each training the validation losses that are drawn.
_HISTORIES = {
    "image_model": {"loss": "image model"},
    "base": {"loss": "Space-Time U-Net", "image_model_loss": "image model, frame by frame"},
}
PROMPT = "a large blue circle moving left"


def main() -> None:
    """Draws the curves, trains the style, draws what is given, and makes one clip after the other."""
    _draw_curves()
    _run(
        "train",
        "--config=configs/style.py:shapes",
        f"--config.style.base={SHAPES}/base",
        f"--config.dataset.path={HERE}/ink.png",
        f"--workdir={STYLE}",
    )
    with tempfile.TemporaryDirectory() as made:
        made = pathlib.Path(made)
        _draw_given(made)
        image, video, mask = f"--image={HERE}/first_frame.png", f"--video={made}/video.mp4", f"--mask={made}/mask.png"
        base, conditional = f"--checkpoint={SHAPES}/base", f"--checkpoint={SHAPES}/conditional"
        applications = {
            "text_to_video": (base,),
            "image_to_video": (conditional, "--task=image_to_video", image),
            "inpaint": (conditional, "--task=inpaint", video, mask),
            "outpaint": (conditional, "--task=outpaint", video, "--border=0,0,0.25,0.25"),
            "cinemagraph": (conditional, "--task=cinemagraph", image, mask),
            "stylize": (base, "--task=stylize", f"--style={STYLE}", "--alpha=0.5"),
            "edit": (base, "--task=edit", video, "--strength=0.6"),
        }
        for name, flags in applications.items():
            prompt = PROMPT.replace("blue", "yellow") if name == "edit" else PROMPT
            _sample(made / name, f"--prompt={prompt}", *flags)
            for end in ("sheet", "xt"):
                (file,) = (made / name).glob(f"*_{end}.png")
                shutil.copy(file, HERE / f"{name}_{end}.png")
        alphas = ("--task=stylize", f"--style={STYLE}", "--alpha=0,0.25,0.5,0.75,1")
        _sample(made / "alphas", f"--prompt={PROMPT}", base, *alphas)
        (file,) = (made / "alphas").glob("*_alphas.png")
        shutil.copy(file, HERE / "alphas.png")
        # Super-resolution takes four times as long as the clips, on a CPU: it is for the README's alone.
        enlarging = f"--super_resolution={SHAPES}/super_resolution"
        _sample(made / "moving", "--prompts_file=docs/demo_prompts.txt", base, enlarging)
        _write_moving_picture(sorted((made / "moving").glob("*_high_resolution.mp4")))


def _run(module: str, *flags: str) -> None:
    subprocess.run([sys.executable, "-m", f"lumiere_jax.{module}", *flags], check=True)


def _sample(output: pathlib.Path, *flags: str) -> None:
    _run("sample", f"--output={output}", *flags)


def _draw_given(made: pathlib.Path) -> None:
    """first_frame.png in the gallery; video.mp4 and mask.png in `made`."""
    scenes = (scene for _, scene in moving_shapes.prompts(3000, seed=0, duration=FRAMES / FPS))  # none is in a data set
    frames = moving_shapes.render(next(filter(_is_wanted, scenes)), SIZE, FRAMES, FPS)
    video_io.write_mp4(made / "video.mp4", frames, FPS)
    Image.fromarray(frames[0]).save(HERE / "first_frame.png")
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[SIZE // 4 : -SIZE // 4, SIZE // 4 : -SIZE // 4] = 255
    Image.fromarray(mask).save(made / "mask.png")


def _is_wanted(scene: Scene) -> bool:
    (moving,) = scene.objects
    return (moving.shape, moving.colour, moving.size, moving.direction) == ("circle", "blue", "large", "left")


def _draw_curves() -> None:
    """docs/pictures/lumiere_shapes_curves.png: losses on held-out clips at fixed noise levels."""
    figure, panels = plt.subplots(1, len(_HISTORIES), figsize=(8, 2.8), layout="constrained")
    for panel, (name, lines) in zip(panels, _HISTORIES.items(), strict=True):
        text = (HERE.parent / f"lumiere_shapes/{name}.jsonl").read_text()
        records = [json.loads(line) for line in text.splitlines()]
        for loss, label in lines.items():
            panel.plot(*curve(records, f"validation/{loss}"), marker=".", label=label)
        panel.set(title=name.replace("_", " "), xlabel="steps", yscale="log")
        panel.legend(frameon=False, fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("validation loss")
    figure.savefig(HERE.parent / "pictures/lumiere_shapes_curves.png", dpi=120)


def _write_moving_picture(files: list[pathlib.Path]) -> None:
    """moving.gif: clips side by side."""
    clips = [video_io.decode_video(file)[0] for file in files]
    tiled = np.concatenate(clips, axis=2).repeat(SHOWN, axis=1).repeat(SHOWN, axis=2)
    facts = [json.loads(file.with_suffix(".json").read_text()) for file in files]
    prompts = "; ".join(each["prompt"] for each in facts)
    video_io.write_gif(HERE / "moving.gif", tiled, FPS, file_metadata(prompts, facts[0] | {"prompt": prompts}))


if __name__ == "__main__":
    main()
