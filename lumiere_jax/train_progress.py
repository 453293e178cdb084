"""What people see of a run while it trains: progress bar, console lines, TensorBoard (without TensorFlow)."""

import os
import time
from types import TracebackType

import jax
import ml_collections
import numpy as np
import tqdm
from jaxtyping import UInt8
from tensorboardX import summary

from lumiere_jax.event_file import EventFile


class Progress:
    """A progress bar with loss and throughput; scalars and preview images for TensorBoard."""

    def __init__(
        self, directory: str | os.PathLike[str], first_step: int, last_step: int, fields: ml_collections.ConfigDict
    ):
        self._log_every, self._clips = fields.log_every, fields.batch_size
        self._bar = tqdm.tqdm(total=last_step, initial=first_step, unit="step", dynamic_ncols=True)
        self._events = EventFile(directory, first_step + 1)
        self._losses: list[float] = []
        self._since = time.monotonic()

    def step(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Counts a step; every `log_every` of them reports their mean loss and the throughput."""
        self._bar.update()
        self._losses.append(float(metrics["loss"]))
        if step % self._log_every:
            return
        now = time.monotonic()
        clips_per_second = len(self._losses) * self._clips / (now - self._since)
        loss = float(np.mean(self._losses))
        self._bar.set_postfix(loss=f"{loss:.4f}", clips_per_s=f"{clips_per_second:.1f}")
        for name, value in (("loss", loss), ("clips_per_second", clips_per_second)):
            self._events.add_scalar(f"train/{name}", value, step)
        self._events.add_scalar("train/gradient_norm", float(metrics["gradient_norm"]), step)
        self._events.flush()
        self._losses, self._since = [], now

    def validation(self, step: int, losses: dict[str, jax.Array]) -> None:
        """Prints the loss at fixed noise levels, and of an inflated model that of its image model frame by frame."""
        line = f"step {step}: validation loss {float(losses['loss']):.5f}"
        if "image_model_loss" in losses:
            line += f" | the image model, frame by frame: {float(losses['image_model_loss']):.5f}"
        self._bar.write(line)
        for name, value in losses.items():
            self._events.add_scalar(f"validation/{name}", float(value), step)

    def image(self, name: str, image: UInt8[np.ndarray, "height width 3"], step: int) -> None:
        """Shows a picture in TensorBoard."""
        self._events.add_summary(summary.image(name, image, dataformats="HWC"), step)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()
        self._events.close()
