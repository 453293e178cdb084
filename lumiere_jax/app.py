"""A page to make and edit clips in a browser: `python -m lumiere_jax.app --checkpoint=DIR`, then open what it prints.

A tab for each application of the paper (docs/applications.md), a brush for masks, what the network predicts while it
samples, and every result with its files. The page is Gradio's (`pip install 'lumiere-jax[app]'`); what a tab makes is
in app_tasks.py. It answers this machine alone, unless `--host` says otherwise, one clip after the other.
"""

import concurrent.futures
import itertools
import os
import pathlib
import queue
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from absl import app, flags, logging
from absl.flags import FLAGS
from jaxtyping import Array, Float

from lumiere_jax import app_tasks
from lumiere_jax.app_tasks import MAX_GUIDANCE, MAX_SEED, MAX_STEPS, Choices, Job, Models
from lumiere_jax.checkpoints.checkpointing import CheckpointError
from lumiere_jax.checkpoints.trained_run import load_run
from lumiere_jax.data.task_inputs import is_image, read_image
from lumiere_jax.data.video_io import frame_to_rgb, open_video, to_uint8
from lumiere_jax.distributed import platform
from lumiere_jax.pipelines.generation import sampling_settings

# Gradio tells its makers of every start, unless it is told not to before it is imported.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

try:
    import gradio as gr
except ImportError:
    gr = None

_MAX_UPLOAD = "64mb"
_MAX_WAITING = 16  # clips that are asked for while another is made
_MAX_PROMPT = 500  # characters; the tokenizer has its own limit
# The demo's clips are small: pixels rather than mist.
_CSS = """
:is(#preview, #sheet, #xt) :is(.image-container, .image-frame, button:has(img), img) { width: 100%; height: auto }
:is(#preview, #sheet, #xt) img { object-fit: contain }
:is(#preview, #sheet, #xt, #clip) :is(img, video) { width: 100%; image-rendering: pixelated }
"""
_EXAMPLES = ("a large red circle moving left", "a small blue star moving up", "a yellow triangle spins")


Waiting = queue.SimpleQueue[np.ndarray]


class Previews:
    """What the network predicts while it samples, on its way from the sampling thread to the page.

    One object for all clips, as programs are compiled for it: each clip has a queue of its own.
    """

    def __init__(self):
        self.waiting = Waiting()

    def __call__(self, frames: Float[Array, "1 height width 3"]) -> None:
        self.waiting.put(np.asarray(frames)[0])


def _as_they_come(waiting: Waiting, made: concurrent.futures.Future) -> Iterator[np.ndarray]:
    """Predictions, until the clip is made."""
    while not made.done() or not waiting.empty():
        try:
            yield waiting.get(timeout=0.1)
        except queue.Empty:
            continue


def build_page(models: Models, output: pathlib.Path) -> Any:
    """The page, which is not served yet.

    Args:
      models: what it samples from.
      output: where clips go, each into a directory of its own.
    """
    maker = _Maker(models, output)
    settings = sampling_settings(models.base.config)
    with gr.Blocks(title="Lumiere-JAX", analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)) as page:
        gr.Markdown(f"# Lumiere-JAX\n{_description(models)}")
        with gr.Row():
            with gr.Column(scale=3):
                prompt = gr.Textbox(label="Prompt", max_length=_MAX_PROMPT, elem_id="prompt", value=_EXAMPLES[0])
                gr.Examples(list(_EXAMPLES), prompt)
                with gr.Row():
                    seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, elem_id="seed")
                    steps = gr.Slider(1, MAX_STEPS, settings.steps, step=1, label="Steps", elem_id="steps")
                    guidance = gr.Slider(0, MAX_GUIDANCE, settings.guidance_weight, label="Guidance")
                enlarge = gr.Checkbox(
                    bool(models.super_resolution), label="Super-resolution", interactive=bool(models.super_resolution)
                )
                common = [prompt, seed, steps, guidance, enlarge]
                buttons = _tabs(models)
            with gr.Column(scale=2):
                shown = {"interactive": False, "buttons": ["download", "fullscreen"]}
                status = gr.Markdown("", elem_id="status")
                preview = gr.Image(label="As the network predicts it", elem_id="preview", **shown)
                clip = gr.Video(label="Clip", autoplay=True, loop=True, interactive=False, elem_id="clip")
                sheet = gr.Image(label="Frames; above them what was given", elem_id="sheet", **shown)
                xt = gr.Image(label="X-T slice: the middle row over time, downwards", elem_id="xt", **shown)
                files = gr.Files(label="Files", interactive=False, elem_id="files")
        results = [status, preview, clip, sheet, xt, files]
        for make_job, button, inputs in buttons:
            # Gradio looks at the function itself for whether it is a generator.
            make = lambda *values, make_job=make_job: (yield from maker.make(make_job, *values))  # noqa: E731
            button.click(make, [*common, *inputs], results, api_name=make_job.__name__, concurrency_id="devices")
    return page.queue(max_size=_MAX_WAITING, default_concurrency_limit=1)


def _description(models: Models) -> str:
    clip, run = models.base.config.clip, models.for_conditions
    known = "replacement at every step (zero-shot)" if models.is_zero_shot else f"the conditional model {run.path}"
    return (
        f"{models.base.path}: {clip.frames} frames of {clip.size}×{clip.size} at {clip.fps:g} fps. Clips of which a "
        f"part is given are made by {known}; what is given is put into them exactly. What comes out is generated, and "
        "says so in its metadata."
    )


def _tabs(models: Models) -> list[tuple[Callable[..., Job], Any, list[Any]]]:
    """For each tab what makes its job, its button, and its inputs."""
    buttons = []

    def add(make_job: Callable[..., Job], *inputs: Any) -> None:
        name = make_job.__name__
        buttons.append((make_job, gr.Button("Make the clip", variant="primary", elem_id=f"make_{name}"), list(inputs)))

    def video(name: str) -> Any:
        return gr.Video(
            label="Video: its first frames are taken", sources=["upload"], height=240, elem_id=f"video_{name}"
        )

    def brush(name: str, label: str) -> Any:
        paint = gr.Brush(colors=["#ff5500"], color_mode="fixed")
        options = {"sources": ["upload"], "transforms": (), "layers": False, "brush": paint}
        return gr.ImageEditor(type="numpy", label=label, elem_id=f"paint_{name}", **options)

    with gr.Tab("Text", elem_id="tab_text"):
        add(app_tasks.text_to_video)
    with gr.Tab("Image to video"):
        first, last = (
            gr.Image(
                type="filepath",
                sources=["upload"],
                label=f"{which} frame",
                height=240,
                elem_id=f"image_{which.lower()}",
            )
            for which in ("First", "Last")
        )
        add(app_tasks.image_to_video, first, last)
    with gr.Tab("Inpaint"):
        holed = video("inpaint")
        hole = brush("inpaint", "Its first frame: paint over what is to be made, in all frames")
        holed.change(_first_frame, holed, hole, api_visibility="private")
        add(app_tasks.inpaint, holed, hole)
    with gr.Tab("Outpaint"):
        inside = video("outpaint")
        borders = [
            gr.Slider(0, 1, 0.25, label=f"{side}, as a share of the video")
            for side in ("Top", "Bottom", "Left", "Right")
        ]
        add(app_tasks.outpaint, inside, *borders)
    with gr.Tab("Cinemagraph"):
        still = gr.Image(type="filepath", sources=["upload"], label="Image", height=240, elem_id="image_still")
        moving = brush("cinemagraph", "The image: paint over what is to move")
        still.change(_first_frame, still, moving, api_visibility="private")
        add(app_tasks.cinemagraph, still, moving)
    with gr.Tab("Stylize"):
        names = list(models.styles)
        if not names:
            gr.Markdown("No style was given: train one (configs/style.py), and start the page with `--style=DIR`.")
        style = gr.Dropdown(names, value=names[0] if names else None, label="Style", elem_id="style")
        add(app_tasks.stylize, style, gr.Slider(0, 1, 0.75, label="Alpha: the share of the style"))
    with gr.Tab("Edit"):
        original = video("edit")
        strength = gr.Slider(0, 1, 0.5, label="Strength: 1 keeps nothing of the video")
        add(app_tasks.edit, original, strength, gr.Checkbox(label="Frame by frame, with the image model, to compare"))
    return buttons


def _first_frame(file: str | None) -> np.ndarray | None:
    """Of an image or a video, to be painted on.

    Raises:
      gr.Error: it cannot be read.
    """
    if not file:
        return None
    try:
        if is_image(file):
            return read_image(file)
        with open_video(file, name="the video") as opened:
            _, frame = next(iter(opened.frames))
            return frame_to_rgb(frame)
    except (ValueError, OSError) as error:
        raise gr.Error(str(error), print_exception=False) from error


class _Maker:
    """Makes clips, one after the other."""

    def __init__(self, models: Models, output: pathlib.Path):
        self.models, self.output, self.previews = models, output, Previews()
        self.thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="sampling")
        self.numbers = itertools.count(1)

    def make(
        self,
        make_job: Callable[..., Job],
        prompt: str,
        seed: float | int | None,
        steps: float | int,
        guidance: float | int,
        enlarge: bool,
        *inputs: Any,
    ) -> Iterator[tuple]:
        """What the page shows, as it comes about: status, preview, clip, sheet, X-T slice, files.

        Raises:
          gr.Error: what was entered cannot be made.
        """
        directory = self.output / f"{time.strftime('%Y%m%d-%H%M%S')}-{next(self.numbers)}"
        try:
            choices = Choices(prompt, seed, steps, guidance, enlarge and bool(self.models.super_resolution))
            job = make_job(self.models, choices, *inputs)
            waiting = Waiting()
            made = self.thread.submit(self._sample, choices, job, directory, waiting)
            yield "Compiling; the first clip of a kind takes longer.", None, None, None, None, None
            for number, image in enumerate(_as_they_come(waiting, made), start=1):
                yield f"Call {number} of the network", to_uint8(image), None, None, None, None
            files = made.result()
        except (ValueError, OSError, MemoryError) as error:
            raise gr.Error(str(error), print_exception=False) from error
        shown = [str(files[kind]) for kind in ("mp4", "sheet", "xt")]
        told = f"Seed {choices.seed}, {app_tasks.facts_of(files)['frames']} frames: {choices.prompt}"
        yield told, None, *shown, [str(files[kind]) for kind in ("mp4", "gif", "json")]

    def _sample(self, choices: Choices, job: Job, directory: pathlib.Path, waiting: Waiting) -> dict[str, pathlib.Path]:
        # Only now: whoever asked for an earlier clip may have gone, but it was made to its end.
        self.previews.waiting = waiting
        return app_tasks.make(self.models, choices, job, directory, self.previews)


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_string("checkpoint", None, "The --workdir of a text-to-video training.")
    flags.DEFINE_string(
        "conditional", None, "The same of its conditional model; default: clips are completed zero-shot."
    )
    flags.DEFINE_multi_string("style", [], "The same of a style of it; may be repeated.")
    flags.DEFINE_multi_string("super_resolution", [], "The same of super-resolution; repeated: one after the other.")
    flags.DEFINE_string("output", "workdir/app", "Where the clips go.")
    flags.DEFINE_string("host", "127.0.0.1", "Whom to answer: 127.0.0.1 is this machine, 0.0.0.0 is everybody.")
    flags.DEFINE_integer("port", 7860, "Of the page.", 0, 65535)


def main(_argv: list[str]) -> None:
    """Entry point."""
    logging.set_verbosity(logging.WARNING)
    if gr is None:
        sys.exit("error: the page needs Gradio: pip install 'lumiere-jax[app]'")
    try:
        models = Models(
            load_run(FLAGS.checkpoint),
            load_run(FLAGS.conditional) if FLAGS.conditional else None,
            {path: load_run(path) for path in FLAGS.style},
            [load_run(path) for path in FLAGS.super_resolution],
        )
        page = launch(models, pathlib.Path(FLAGS.output), host=FLAGS.host, port=FLAGS.port)
    except (CheckpointError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"open {page.local_url} (Ctrl-C ends it)", flush=True)
    page.block_thread()


def launch(models: Models, output: pathlib.Path, *, host: str = "127.0.0.1", port: int | None = None) -> Any:
    """Serves the page from threads of its own.

    Args:
      models, output: as for `build_page`.
      host: whose requests are answered.
      port: of the page; None: the first free one from 7860 on.

    Returns:
      the page, with its address as `local_url`.

    Raises:
      OSError: the port is in use.
    """
    output.mkdir(parents=True, exist_ok=True)
    page = build_page(models, output)
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["monospace"]}  # others are fetched from outside
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        allowed_paths=[str(output)],  # what it serves beside what was uploaded
        max_file_size=_MAX_UPLOAD,
        theme=gr.themes.Default(**fonts),
        css=_CSS,
        footer_links=[],
        prevent_thread_lock=True,
        quiet=True,
    )
    return page


if __name__ == "__main__":
    platform.configure()
    define_flags()
    flags.mark_flag_as_required("checkpoint")
    app.run(main)
