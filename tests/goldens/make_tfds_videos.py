"""Makes `tests/goldens/tfds_videos.tar.xz`: tiny stock video data sets of TFDS, written by their real builders.

    python tests/goldens/make_tfds_videos.py

The builders of ucf101, bair_robot_pushing_small and moving_mnist run as they are; only what they would download is
replaced by a few synthetic files of the same form. Needs tensorflow (2.21 made the file in the repository),
tensorflow-datasets, av and an ffmpeg binary on the PATH. The tests read the result without TensorFlow; it is packed
because array_record pads each file to 128 kB.
"""

import pathlib
import shutil
import tempfile
from unittest import mock

import av
import numpy as np

OUTPUT = pathlib.Path(__file__).parent / "tfds_videos.tar.xz"

UCF101_VIDEOS = {  # file in each split's list: the number that its frames show
    "train": {
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi": 0,
        "HandstandPushups/v_HandStandPushups_g08_c01.avi": 1,
        "YoYo/v_YoYo_g08_c01.avi": 2,
    },
    "test": {"BasketballDunk/v_BasketballDunk_g01_c01.avi": 3},
}
UCF101_FRAMES, UCF101_FPS, UCF101_SIZE = 25, 25, (24, 32)
BAIR_FRAMES, MNIST_FRAMES, MNIST_CLIPS = 30, 20, 10


def video_values(number: int, frames: int, height: int, width: int) -> np.ndarray:
    """RGB frames: red tells the video, green the time; the right half is brighter in blue."""
    video = np.zeros((frames, height, width, 3), np.uint8)
    video[..., 0] = 60 * number + 20
    video[..., 1] = 8 * np.arange(frames)[:, None, None]
    video[:, :, width // 2 :, 2] = 200
    return video


def mnist_values(number: int) -> np.ndarray:
    """Grey frames [frames, 64, 64]: a square that moves to the right by two pixels per frame."""
    video = np.zeros((MNIST_FRAMES, 64, 64), np.uint8)
    for time in range(MNIST_FRAMES):
        video[time, 5 * number : 5 * number + 8, 2 * time : 2 * time + 8] = 255
    return video


def _write_ucf101(folder: pathlib.Path) -> dict[str, str]:
    (folder / "videos/UCF101").mkdir(parents=True)
    (folder / "splits/ucfTrainTestlist").mkdir(parents=True)
    for split, videos in UCF101_VIDEOS.items():
        lines = []
        for file, number in videos.items():
            # The builder looks the files up under a name that differs in one class, as the real archive's does.
            name = pathlib.Path(file).name.replace("HandStandPushups", "HandstandPushups")
            with av.open(str(folder / "videos/UCF101" / name), "w") as container:
                stream = container.add_stream("mpeg4", rate=UCF101_FPS, options={"qscale": "1"})
                stream.height, stream.width = UCF101_SIZE
                stream.pix_fmt = "yuv420p"
                for image in video_values(number, UCF101_FRAMES, *UCF101_SIZE):
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
                container.mux(stream.encode())
            lines.append(f"{file} 1\n" if split == "train" else f"{file}\n")
        (folder / f"splits/ucfTrainTestlist/{split}list01.txt").write_text("".join(lines))
    return {"videos": str(folder / "videos"), "splits": str(folder / "splits")}


def _write_bair(folder: pathlib.Path) -> str:
    import tensorflow as tf

    for split, number in (("train", 0), ("test", 1)):
        directory = folder / "softmotion30_44k" / split
        directory.mkdir(parents=True)
        example = tf.train.SequenceExample()
        feature = example.context.feature
        for time, image in enumerate(video_values(number, BAIR_FRAMES, 64, 64)):
            feature[f"{time}/image_main/encoded"].bytes_list.value.append(image.tobytes())
            feature[f"{time}/image_aux1/encoded"].bytes_list.value.append((255 - image).tobytes())
            feature[f"{time}/endeffector_pos"].float_list.value.extend([0.0, 0.1, 0.2])
            feature[f"{time}/action"].float_list.value.extend([0.0, 0.1, 0.2, 0.3])
        with tf.io.TFRecordWriter(str(directory / "traj_0_to_0.tfrecords")) as writer:
            writer.write(example.SerializeToString())
    return str(folder)


def _write_mnist(folder: pathlib.Path) -> str:
    folder.mkdir(parents=True)
    np.save(folder / "mnist_test_seq.npy", np.stack([mnist_values(number) for number in range(MNIST_CLIPS)], axis=1))
    return str(folder / "mnist_test_seq.npy")


def main() -> None:
    """Writes OUTPUT anew."""
    import tensorflow_datasets as tfds

    manager = "tensorflow_datasets.core.download.DownloadManager"
    with tempfile.TemporaryDirectory() as temporary:
        data_dir = pathlib.Path(temporary, "data")
        downloads = {
            "ucf101/ucf101_1": _write_ucf101(pathlib.Path(temporary, "ucf101")),
            "bair_robot_pushing_small": _write_bair(pathlib.Path(temporary, "bair")),
            "moving_mnist": _write_mnist(pathlib.Path(temporary, "mnist")),
        }
        for name, downloaded in downloads.items():
            builder = tfds.builder(name, data_dir=str(data_dir), file_format="array_record")
            with (
                mock.patch(f"{manager}.download_and_extract", return_value=downloaded),
                mock.patch(f"{manager}.download", return_value=downloaded),
            ):
                builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
        shutil.rmtree(data_dir / "downloads", ignore_errors=True)
        shutil.make_archive(str(OUTPUT).removesuffix(".tar.xz"), "xztar", data_dir)


if __name__ == "__main__":
    main()
