"""Clips per second of this project's loader against decord, OpenCV, and PyTorch's DataLoader over PyAV.

    pip install '.[peers]'
    python -m benchmarks.data_loading --videos=DIR --output=DIR [--quick]

All do the same work in one run: of each file the frames nearest to the same times, cropped at the center, scaled to the
same size, as float batches of the same size, with as many threads (PyTorch: processes) as `--workers`. What
they give is compared, and a loader whose frames differ from ours is an error. Each measurement has a process of its
own; the loaders take turns, and the median over the rounds counts.

Measured on two kinds of files: raw ones, cut from the start of `--videos` to the length of a clip at their own size and
rate (default: rendered ones of 256x256 pixels at 30 fps, easier to decode than real ones), and the same after
preparation, 128x128 pixels at 16 fps, which this project reads from a TFDS data set and the others from mp4 files. All
files are in the page cache: disks are not measured.

Writes `data_loading.json` and prints the table. A peer that is not installed is listed as missing.
"""

import concurrent.futures
import dataclasses
import importlib.util
import itertools
import json
import multiprocessing
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

import av
import numpy as np
from absl import app, flags
from absl.flags import FLAGS

from benchmarks.machine import machine
from lumiere_jax.data import moving_shapes, video_folder
from lumiere_jax.data.clip_sampling import frame_indices, sample_by_time, sample_times
from lumiere_jax.data.input_pipeline import make_batches
from lumiere_jax.data.source_videos import find_sources
from lumiere_jax.data.video_io import VideoError, encode_mp4, frame_to_rgb, open_video, to_float, to_uint8

OURS = "lumiere_jax"
PEERS = {"decord": "decord", "OpenCV": "cv2", "PyTorch DataLoader + PyAV": "torch"}  # and what is imported
_DISTRIBUTIONS = ("av", "decord", "grain", "numpy", "opencv-python-headless", "torch")
# Mean difference in grey levels: colour conversions and filters differ by about one; another frame by more than this.
_SAME_FRAMES = 4.0


@dataclasses.dataclass(frozen=True)
class Task:
    """The work that every loader does."""

    frames: int
    fps: float
    size: int
    batch_size: int
    workers: int
    batches: int  # measured, after one that is not

    @property
    def times(self) -> np.ndarray:
        """Seconds of the frames in a file."""
        return sample_times(self.frames, self.fps)


@dataclasses.dataclass(frozen=True)
class Measured:
    """What one loader did in one round."""

    clips_per_second: float
    shown: dict[str, np.ndarray]  # file: some of its frames, uint8


# ---------------------------------------------------------------------------------------------- files


def write_raw(videos: str, folder: pathlib.Path, task: Task) -> None:
    """Files of exactly one clip's length, at the size and rate of the originals.

    Raises:
      VideoError: none of the videos is long enough.
    """
    sources = find_sources(videos, default_caption="a video")
    reasons = list(sources.rejected.values())
    for source in sources.videos:
        try:
            frames, fps = _beginning(pathlib.Path(source.path), task)
        except VideoError as error:
            reasons.append(str(error))
            print(f"left out: {error}", flush=True)
            continue
        (folder / source.name.replace("/", "_")).with_suffix(".mp4").write_bytes(encode_mp4(frames, fps, crf=18))
    if not any(folder.iterdir()):
        raise VideoError(f"no video in {videos} can be used: " + "; ".join(reasons))


def write_rendered(folder: pathlib.Path, task: Task, count: int, size: int = 256, fps: int = 30) -> None:
    """Stand-ins for raw files: scenes of moving_shapes."""
    frames = _stored_frames(task, fps)
    for number, (_, scene) in enumerate(moving_shapes.prompts(count, seed=0, duration=frames / fps)):
        video = moving_shapes.render(scene, size, frames, fps)
        (folder / f"{number:03d}.mp4").write_bytes(encode_mp4(video, fps, crf=18))


def _beginning(path: pathlib.Path, task: Task) -> tuple[np.ndarray, float]:
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise VideoError(f"{path}: has no video stream")
        fps = float(container.streams.video[0].average_rate or 25)
    count = _stored_frames(task, fps)
    with open_video(path) as video:
        frames = [frame_to_rgb(frame) for frame in sample_by_time(video.frames, np.arange(count) / fps)]
    if len(frames) < count:
        raise VideoError(f"{path}: too short, has {len(frames)} of {count} frames")
    if min(frames[0].shape[:2]) < task.size:
        raise VideoError(f"{path}: frames are smaller than {task.size} pixels")
    return np.stack(frames), fps


def _stored_frames(task: Task, fps: float) -> int:
    """So many that a clip can begin on the first frame alone: our loader, too, then begins there."""
    return int(np.ceil(task.times[-1] * fps + 0.5 - 1e-6))


def write_prepared(raw: pathlib.Path, folder: pathlib.Path, task: Task) -> None:
    """What training reads, as a TFDS data set and as mp4 files beside it."""
    for record in _prepared_source(raw, folder, task):
        name = record["source"].decode()
        (folder / name).write_bytes(record["clip"])


def _prepared_source(raw: pathlib.Path, folder: pathlib.Path, task: Task) -> Sequence[dict]:
    builder = video_folder.prepare(
        raw, folder / "tfds", frames=task.frames, fps=task.fps, size=task.size, default_caption="a video"
    )
    return builder.as_data_source(split="train")


# ---------------------------------------------------------------------------------------------- loaders


class _RawFiles(Sequence):
    """Files as records; the caption is the file's name."""

    def __init__(self, files: Sequence[pathlib.Path]):
        self._files = files
        self._fps = []
        for file in files:
            with av.open(str(file)) as container:
                self._fps.append(float(container.streams.video[0].average_rate))

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict:
        file = self._files[index]
        return {"clip": file.read_bytes(), "caption": file.name, "fps": self._fps[index]}


class _PreparedClips(Sequence):
    """The TFDS data set; the caption is the file's name."""

    def __init__(self, source: Sequence[dict]):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict:
        record = self._source[index]
        return record | {"caption": record["source"]}


def load_with_ours(raw: pathlib.Path, folder: pathlib.Path, task: Task) -> Iterator[dict]:
    """This project's loader, over raw files or the prepared data set."""
    if folder == raw:
        source: Sequence[dict] = _RawFiles(sorted(raw.glob("*.mp4")))
    else:
        source = _PreparedClips(_prepared_source(raw, folder, task))
    settings = dataclasses.asdict(task)
    del settings["batches"]
    return make_batches(source, num_threads=settings.pop("workers"), seed=0, shuffle=False, **settings)


def load_in_threads(read: Callable[[pathlib.Path, Task], np.ndarray], folder: pathlib.Path, task: Task) -> Iterator:
    """What a careful user of decord or OpenCV writes: a pool of threads that reads two batches ahead, in order."""
    files = itertools.cycle(sorted(folder.glob("*.mp4")))
    with concurrent.futures.ThreadPoolExecutor(task.workers) as pool:
        ahead = [(file, pool.submit(read, file, task)) for file in itertools.islice(files, 2 * task.batch_size)]
        while True:
            batch = []
            for _ in range(task.batch_size):
                name, clip = ahead.pop(0)
                batch.append((clip.result(), name.name))
                file = next(files)
                ahead.append((file, pool.submit(read, file, task)))
            yield collate(batch)


def collate(batch: Sequence[tuple[np.ndarray, str]]) -> dict:
    """uint8 clips and their names to a batch as ours."""
    return {"video": to_float(np.stack([clip for clip, _ in batch])), "caption": [name for _, name in batch]}


def read_with_decord(file: pathlib.Path, task: Task) -> np.ndarray:
    """A clip by decord, scaled by OpenCV's area filter."""
    import decord

    reader = decord.VideoReader(str(file), num_threads=1)
    stamps = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0].astype(np.float64)
    chosen = reader.get_batch(frame_indices(stamps - stamps[0], task.times)).asnumpy()
    return np.stack([_area_resize(image, task.size) for image in chosen])


def read_with_opencv(file: pathlib.Path, task: Task) -> np.ndarray:
    """A clip by OpenCV; frames that are not shown are grabbed, not converted."""
    import cv2

    capture = cv2.VideoCapture(str(file), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    fps, count = capture.get(cv2.CAP_PROP_FPS), int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    images, position = [], -1
    for index in frame_indices(np.arange(count) / fps, task.times):
        while position < index:
            capture.grab()
            position += 1
            image = None
        if image is None:
            image = _area_resize(cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB), task.size)
        images.append(image)
    capture.release()
    return np.stack(images)


def _area_resize(image: np.ndarray, size: int) -> np.ndarray:
    import cv2

    if image.shape[:2] == (size, size):
        return image
    edge = min(image.shape[:2])
    top, left = (image.shape[0] - edge) // 2, (image.shape[1] - edge) // 2
    return cv2.resize(image[top : top + edge, left : left + edge], (size, size), interpolation=cv2.INTER_AREA)


class _TorchClips:
    """A map-style data set for PyTorch's DataLoader: PyAV, scaled by PyTorch."""

    def __init__(self, files: Sequence[pathlib.Path], task: Task):
        self._files, self._task = files, task

    def __len__(self) -> int:
        # The loader is endless: PyTorch stops its workers at the end of a data set and starts others.
        return self._task.batch_size * (self._task.batches + 1)

    def __getitem__(self, index: int) -> tuple[np.ndarray, str]:
        import torch

        file, size = self._files[index % len(self._files)], self._task.size
        with av.open(str(file)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            timed = ((frame.time, frame) for frame in container.decode(stream))
            images = np.stack([frame.to_ndarray(format="rgb24") for frame in sample_by_time(timed, self._task.times)])
        if images.shape[1:3] != (size, size):
            edge = min(images.shape[1:3])
            top, left = (images.shape[1] - edge) // 2, (images.shape[2] - edge) // 2
            cropped = torch.from_numpy(images[:, top : top + edge, left : left + edge]).permute(0, 3, 1, 2)
            resized = torch.nn.functional.interpolate(cropped, (size, size), mode="bilinear", antialias=True)
            images = resized.permute(0, 2, 3, 1).numpy()
        return images, file.name


def load_with_torch(folder: pathlib.Path, task: Task) -> Iterator[dict]:
    """PyTorch's DataLoader, `workers` processes, one batch ahead in each."""
    import torch

    loader = torch.utils.data.DataLoader(
        _TorchClips(sorted(folder.glob("*.mp4")), task),
        batch_size=task.batch_size,
        num_workers=task.workers,
        prefetch_factor=1,
        multiprocessing_context="spawn",
    )
    for video, names in loader:  # uint8 through shared memory, as PyTorch does it
        yield {"video": video.float().div_(127.5).sub_(1.0).numpy(), "caption": list(names)}


# ---------------------------------------------------------------------------------------------- measuring


def measure(loader: str, raw: pathlib.Path, folder: pathlib.Path, task: Task) -> Measured:
    """One loader over the files of one folder, in this process."""
    match loader:
        case "decord":
            batches = load_in_threads(read_with_decord, folder, task)
        case "OpenCV":
            batches = load_in_threads(read_with_opencv, folder, task)
        case "PyTorch DataLoader + PyAV":
            batches = load_with_torch(folder, task)
        case _:
            batches = load_with_ours(raw, folder, task)
    first = next(batches)
    start = time.perf_counter()
    for _ in range(task.batches):
        batch = next(batches)
        assert batch["video"].shape == (task.batch_size, task.frames, task.size, task.size, 3)
    seconds = time.perf_counter() - start
    shown = {
        name: to_uint8(video[:: max(1, task.frames // 5)])
        for name, video in zip(first["caption"], first["video"], strict=True)
    }
    return Measured(task.batches * task.batch_size / seconds, shown)


def compare(
    raw: pathlib.Path, prepared: pathlib.Path, task: Task, rounds: int, peers: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Median clips per second: `{"raw" or "prepared": {loader: ...}}`.

    Raises:
      ValueError: a loader gives other frames than ours.
    """
    rates: dict[str, dict[str, list[float]]] = {"raw": {}, "prepared": {}}
    for _ in range(rounds):
        for kind, folder in (("raw", raw), ("prepared", prepared)):
            ours: dict[str, np.ndarray] = {}
            for loader in (OURS, *peers):
                result = _in_a_process_of_its_own(measure, loader, raw, folder, task)
                ours = ours or result.shown
                check_same_frames(loader, kind, ours, result.shown)
                rates[kind].setdefault(loader, []).append(result.clips_per_second)
                print(f"  {kind}, {loader}: {result.clips_per_second:.2f} clips/s", flush=True)
    return {kind: {loader: statistics.median(found) for loader, found in of.items()} for kind, of in rates.items()}


def _in_a_process_of_its_own(function: Callable[..., Measured], *arguments: object) -> Measured:
    # A pool each: Python 3.11's `max_tasks_per_child` can wait for ever (CPython issue 115634).
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as processes:
        return processes.submit(function, *arguments).result()


def check_same_frames(loader: str, kind: str, ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    """Raises a ValueError where a loader's frames are not those that ours gives."""
    common = sorted(set(ours) & set(theirs))
    if not common:
        raise ValueError(f"{loader} and {OURS} have no {kind} file in common: {sorted(theirs)}, {sorted(ours)}")
    for name in common:
        difference = float(np.abs(ours[name].astype(float) - theirs[name]).mean())
        if difference > _SAME_FRAMES:
            raise ValueError(
                f"{loader} shows other frames of {name} ({kind}) than {OURS}: {difference:.1f} grey levels apart"
            )


def installed_peers() -> tuple[list[str], list[str]]:
    """The peers that can be measured here, and those that cannot."""
    present = [peer for peer, module in PEERS.items() if importlib.util.find_spec(module) is not None]
    if "OpenCV" not in present and "decord" in present:
        present.remove("decord")  # its frames are scaled by OpenCV here
    return present, [peer for peer in PEERS if peer not in present]


def table(rates: dict[str, dict[str, float]], missing: Sequence[str]) -> str:
    """A Markdown table: clips per second, and how many times as fast ours is."""
    ours = {kind: of[OURS] for kind, of in rates.items()}
    lines = ["| loader | raw files, clips/s | ours is | prepared, clips/s | ours is |", "|---|---|---|---|---|"]
    for loader in rates["raw"]:
        cells = [
            cell
            for kind, of in rates.items()
            for cell in (f"{of[loader]:.2f}", "" if loader == OURS else f"{ours[kind] / of[loader]:.2f} x")
        ]
        lines.append(f"| {loader} | " + " | ".join(cells) + " |")
    lines += [f"| {peer} | not installed | | | |" for peer in missing]
    return "\n".join([*lines, "", f"prepared data against raw files, ours: {ours['prepared'] / ours['raw']:.2f} x"])


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_string("videos", "", "Folder of raw videos; default: rendered ones.")
    flags.DEFINE_string("output", None, "Folder for data_loading.json.", required=True)
    flags.DEFINE_integer("workers", os.cpu_count(), "Threads, or processes, of each loader.", 1)
    flags.DEFINE_integer("batch_size", 8, "Clips per batch.", 1)
    flags.DEFINE_integer("batches", 8, "Batches per measurement.", 1)
    flags.DEFINE_integer("rounds", 3, "Measurements of each loader.", 1)
    flags.DEFINE_bool("quick", False, "Short clips, one round: shows that it runs; its numbers mean little.")


def main(_argv: list[str]) -> None:
    """Entry point."""
    facts = machine(_DISTRIBUTIONS)
    task = Task(80, 16.0, 128, FLAGS.batch_size, FLAGS.workers, FLAGS.batches)
    rounds = FLAGS.rounds
    if FLAGS.quick:
        task, rounds = Task(16, 16.0, 64, 4, FLAGS.workers, 2), 1
    present, missing = installed_peers()
    if missing:
        print(f"not installed, left out: {', '.join(missing)} (pip install '.[peers]')")
    with tempfile.TemporaryDirectory() as temporary:
        raw, prepared = pathlib.Path(temporary, "raw"), pathlib.Path(temporary, "prepared")
        raw.mkdir()
        prepared.mkdir()
        if FLAGS.videos:
            write_raw(FLAGS.videos, raw, task)
        else:
            write_rendered(raw, task, count=4 if FLAGS.quick else 16)
        write_prepared(raw, prepared, task)
        rates = compare(raw, prepared, task, rounds, present)
        files = len(list(raw.glob("*.mp4")))
    print(table(rates, missing))
    output = pathlib.Path(FLAGS.output)
    output.mkdir(parents=True, exist_ok=True)
    facts |= {"task": dataclasses.asdict(task), "rounds": rounds, "videos": FLAGS.videos or "rendered", "files": files}
    facts |= {"clips per second": rates, "not installed": missing, "quick": FLAGS.quick}
    (output / "data_loading.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    define_flags()
    app.run(main)
