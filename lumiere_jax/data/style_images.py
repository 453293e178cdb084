"""Images as a data set, in memory: the one to a few that a style is learned from (configs/style.py)."""

import io
import os
import pathlib

from PIL import Image

from lumiere_jax.data.captions_file import caption_beside, caption_problem, read_captions
from lumiere_jax.data.clip_loader import Record
from lumiere_jax.data.task_inputs import is_image, read_image

_MAX_CAPTION_LENGTH = 1000  # characters


def open_style_images(
    path: str | os.PathLike[str], *, captions: str | None = None, default_caption: str | None = None
) -> list[Record]:
    """Records of one frame each, in the order of their names; of an animated image none can be made.

    Args:
      path: an image, or a folder of images.
      captions: a .csv or .jsonl file with the columns file and caption; default: the .txt beside each image.
      default_caption: of images that have none.

    Raises:
      FileNotFoundError: there is nothing at `path`.
      ValueError: no image is there, or one cannot be read or has no caption.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"dataset.path={path}: there is no such image or folder")
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if is_image(file))
    if not files:
        raise ValueError(f"dataset.path={path} has no images, by the endings of its files' names")
    by_file = read_captions(captions).by_file if captions else {}
    records = []
    for file in files:
        caption = by_file.get(file.name, "") or caption_beside(file) or default_caption or ""
        if problem := caption_problem(caption, _MAX_CAPTION_LENGTH):
            raise ValueError(f"{file}: {problem}")
        encoded = io.BytesIO()
        Image.fromarray(read_image(file)).save(encoded, format="PNG")
        record = {"frames": [encoded.getvalue()], "caption": caption, "fps": 1.0, "source": file.name}
        records.append(record)
    return records
