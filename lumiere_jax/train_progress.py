"""What people see of a run while it trains: progress bar, warnings, TensorBoard (without TensorFlow), a web page."""

import contextlib
import math
import os
import pathlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType

import jax
import ml_collections
import numpy as np
import tqdm
from PIL import Image
from tensorboardX import summary
from tensorboardX.proto.summary_pb2 import Summary

from lumiere_jax.event_file import EventFile
from lumiere_jax.train_curves import COMPARED
from lumiere_jax.train_history import History
from lumiere_jax.train_page import Status, write_page

# A run that waits for its data for more than this share of its time is told what to do about it ...
_STARVED = 0.5
# ... once, and again after so many windows of `log_every` steps.
_WARN_EVERY = 20
# Metrics that count from the beginning of the run: reported as they stand, not as means.
_COUNTS = ("spikes", "skipped")
# The page is drawn again after this time, and not before this many times what the last drawing took: under 1 % of the
# run's time. Previews and the end have theirs anyway.
_REDRAW_SECONDS = 30.0
_REDRAW_SHARE = 100


class Progress:
    """A progress bar with ETA, loss and throughput; TensorBoard, `metrics.jsonl`, `index.html` in the run's directory.

    A context manager: how it is left is what the page says of the run (finished, stopped, and why). A disk that is full
    stops the run here as it does in writing a checkpoint.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        first_step: int,
        last_step: int,
        fields: ml_collections.ConfigDict,
        *,
        is_shown: bool = True,
        seconds_at_peak: Callable[[tuple[int, ...]], float] | None = None,
    ):
        """Opens the files; what an earlier start wrote of steps after `first_step` is cut off.

        Args:
          directory: of the run.
          first_step: updates done.
          last_step: updates to do in all.
          fields: `config.training`.
          is_shown: False on all processes of a run but one: nothing is shown or written.
          seconds_at_peak: the least time for a batch whose video has this shape (`model_flops.seconds_at_peak`); None:
            model FLOP utilisation is not shown.
        """
        self._is_shown = is_shown
        if not is_shown:
            return
        self._directory, self._log_every = pathlib.Path(directory), fields.log_every
        self._first, self._step, self._last = first_step, first_step, last_step
        self._seconds_at_peak = seconds_at_peak
        self._history = History(directory, first_step)
        self._window = _Window()
        self._seen: set[tuple[int, ...]] = set()
        self._quiet_windows = _WARN_EVERY
        self._since, self._began = time.monotonic(), None
        self._next_page = -math.inf
        self._draw("running")  # may raise: nothing is open yet
        self._events = EventFile(directory, first_step + 1)
        # A log file gets a line now and then, not ten a second.
        interval = 0.1 if sys.stderr.isatty() else 30.0
        self._bar = tqdm.tqdm(
            total=last_step, initial=first_step, unit="step", dynamic_ncols=True, mininterval=interval, smoothing=0.05
        )

    def step(self, step: int, metrics: Mapping[str, float], waited: float, video_shape: tuple[int, ...]) -> None:
        """Counts an update; every `log_every` of them report the means of their metrics, and the throughput.

        Args:
          step: updates done.
          metrics: of this update, on the host: `loss`, `gradient_norm` and others.
          waited: seconds that the host waited for the batch, since the last call.
          video_shape: `[batch, frames, height, width, 3]` of the batch, over all processes.
        """
        if not self._is_shown:
            return
        now = time.monotonic()
        # The first batch of a shape is what its program is compiled in: no measure of anything.
        is_timed = video_shape in self._seen
        if not is_timed:
            self._seen.add(video_shape)
            self._bar.unpause()
        at_peak = self._seconds_at_peak(video_shape) if self._seconds_at_peak else None
        self._window.add(metrics, (now - self._since, waited, at_peak) if is_timed else None, video_shape)
        self._since = time.monotonic()
        self._began = self._began or (self._since, step)
        self._step = step
        if step % self._log_every == 0:
            self._report(step)
        self._bar.update()

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Around what is not training (validation, checkpoints, previews): its time does not count as a step's."""
        yield
        if self._is_shown:
            self._since = time.monotonic()

    def validation(
        self, step: int, losses: Mapping[str, jax.Array], gates: Mapping[str, jax.Array] | None = None
    ) -> None:
        """Shows the loss at fixed noise levels, and beside it that of what the run started from.

        Args:
          step: updates done.
          losses: as `validation_step` gives them.
          gates: as `gate_norms` gives them, of an inflated model.
        """
        if not self._is_shown:
            return
        line = f"step {step}: validation loss {float(losses['loss']):.5f}"
        for name, label in COMPARED.items():
            if name in losses:
                line += f" | {label}: {float(losses[name]):.5f}"
        self._bar.write(line)
        norms = {f"gate_norms/{name}": float(norm) for name, norm in (gates or {}).items()}
        if norms:
            self._events.add_summary(summary.histogram("gate_norms", np.array(list(norms.values())), "auto"), step)
        self._record(step, {f"validation/{name}": float(loss) for name, loss in losses.items()} | norms)
        self._draw("running")

    def preview(self, step: int, directory: str | os.PathLike[str]) -> None:
        """Shows what `write_preview` wrote into `directory`: the sheet, and each clip moving."""
        if not self._is_shown:
            return
        sheet, *clips = pathlib.Path(directory, "sheet.png"), *sorted(pathlib.Path(directory).glob("*.gif"))
        for name, file in [("preview", sheet), *((f"preview/{clip.stem}", clip) for clip in clips)]:
            with Image.open(file) as picture:
                width, height = picture.size
            # The file as it is: TensorBoard plays a GIF, and tensorboardX would make one with MoviePy.
            encoded = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=file.read_bytes())
            self._events.add_summary(Summary(value=[Summary.Value(tag=name, image=encoded)]), step)
        self._draw("running", is_due=True)

    def _report(self, step: int) -> None:
        values, self._window = self._window.means(), _Window()
        self._record(step, {f"train/{name}": value for name, value in values.items()})
        shown = {"loss": f"{values['loss']:.4f}"} if "loss" in values else {}
        for name in ("steps_per_second", "clips_per_second", "images_per_second"):
            if name in values:
                shown[name.replace("_per_second", "/s")] = f"{values[name]:.3g}"
        if "model_flop_utilisation" in values:
            shown["MFU"] = f"{values['model_flop_utilisation']:.1%}"
        self._bar.set_postfix(shown, refresh=False)
        self._warn(step, values.get("data_wait_share", 0.0), values.get("steps_per_second", 1.0))
        self._draw("running")

    def _warn(self, step: int, share: float, steps_per_second: float) -> None:
        self._quiet_windows += 1
        if share <= _STARVED or self._quiet_windows <= _WARN_EVERY:
            return
        self._quiet_windows = 0
        self._bar.write(
            f"warning: step {step}: {share:.0%} of the time ({share / steps_per_second:.2f} s a step) went in waiting "
            "for data. Raise dataset.threads (to the number of cores) or dataset.cache_bytes (of decoded clips), "
            "or prepare the videos with `python -m lumiere_jax.prepare_data`; `python -m lumiere_jax.inspect_data` "
            "says how fast clips are read"
        )

    def _record(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        self._events.flush()
        self._history.append(step, values)

    def _draw(self, state: str, message: str = "", *, is_due: bool = False) -> None:
        began = time.monotonic()
        if began < self._next_page and not is_due:
            return
        status = Status(state, message, self._step, self._last, self._seconds_left() if state == "running" else None)
        write_page(self._directory, status, self._history.records)
        now = time.monotonic()
        self._next_page = now + max(_REDRAW_SECONDS, _REDRAW_SHARE * (now - began))
        self._since += now - began

    def _seconds_left(self) -> float | None:
        """As the steps since the first one went, with all that comes between them."""
        if self._began is None or self._step == self._began[1]:
            return None
        seconds, steps = time.monotonic() - self._began[0], self._step - self._began[1]
        return (self._last - self._step) * seconds / steps

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._is_shown:
            return
        self._bar.close()
        self._events.close()
        if error is None:
            self._draw("finished" if self._step == self._last else "stopped", is_due=True)
            return
        try:
            self._draw("stopped", f"{kind.__name__}: {error}".removesuffix(": "), is_due=True)
        except OSError as page_error:  # not in place of what stopped the run
            print(f"warning: {self._directory / 'index.html'} was not written: {page_error}")


class _Window:
    """The steps since the last report."""

    def __init__(self):
        self._metrics: dict[str, list[float]] = {}
        self._timed = 0
        self._seconds = self._waited = self._at_peak = 0.0
        self._counts: Counter[str] = Counter()

    def add(
        self,
        metrics: Mapping[str, float],
        times: tuple[float, float, float | None] | None,
        video_shape: tuple[int, ...],
    ) -> None:
        """Counts a step, which took `times` (in all, waiting for data, at the devices' peak) if it can be timed."""
        for name, value in metrics.items():
            self._metrics.setdefault(name, []).append(float(value))
        if times is None:
            return
        seconds, waited, at_peak = times
        self._timed += 1
        self._seconds += seconds
        self._waited += waited
        self._at_peak += math.nan if at_peak is None else at_peak
        self._counts["images_per_second" if video_shape[1] == 1 else "clips_per_second"] += video_shape[0]

    def means(self) -> dict[str, float]:
        """Of the metrics over their finite values (a step that is not finite was no update), and of the times."""
        means = {}
        for name, values in self._metrics.items():
            finite = [value for value in values if math.isfinite(value)]
            means[name] = float(np.mean(finite)) if finite else math.nan
        means |= {name: self._metrics[name][-1] for name in _COUNTS if name in means}
        if not self._timed:
            return means
        means |= {name: count / self._seconds for name, count in self._counts.items()}
        means["steps_per_second"] = self._timed / self._seconds
        means["data_wait_share"] = self._waited / self._seconds
        if not math.isnan(self._at_peak):
            means["model_flop_utilisation"] = self._at_peak / self._seconds
        return means
