"""Which files of published weights the metrics need, where they are, and whether a file is the published one.

None is downloaded by this program: each has its licence, and some have several places. SHA-256s are those that others
published; this project has not had the files.
"""

import dataclasses
import os
import pathlib

from lumiere_jax.checkpoints.safetensors_files import file_sha256


@dataclasses.dataclass(frozen=True)
class PublishedFile:
    """A file that somebody else publishes.

    Attributes:
      name: of the file.
      holds: what it is.
      url: where its publisher has it.
      sha256: of the file; None where none is published.
      sha256_source: who says so; empty where none is published.
      note: what else to know of it.
    """

    name: str
    holds: str
    url: str
    sha256: str | None = None
    sha256_source: str = ""
    note: str = ""

    def describe(self) -> str:
        """Which file, whence, its hash: for errors and for the documentation."""
        hash_line = (
            f"{self.sha256} ({self.sha256_source})" if self.sha256 else "none is published: it cannot be checked"
        )
        lines = [f"{self.name}: {self.holds}", f"  from {self.url}", f"  SHA-256: {hash_line}"]
        return "\n".join(lines + [f"  {self.note}"] * bool(self.note))


I3D = PublishedFile(
    "i3d_pretrained_400.pt",
    "I3D of Kinetics-400, a state dict of PyTorch's made from TF-Hub's deepmind/i3d-kinetics-400",
    "https://drive.google.com/uc?id=1mQK8KD8G6UWRa5t87SRMm5PVXtlpneJT",
    "55095f049e706479d48e221adcdb145b2b9dc930ba28b081ed72367ffaa32343",
    "the Git LFS pointer of a copy: github.com/camenduru/Open-Sora-Plan-v1.0.0-hf, opensora/eval/fvd/videogpt",
    "VideoGPT's (github.com/wilson1yan/VideoGPT, videogpt/download.py); its authors publish no hash. Not the "
    "i3d_torchscript.pt of StyleGAN-V, which is a program.",
)
C3D = PublishedFile(
    "conv3d_deepnetA_ucf.npz",
    "C3D of UCF101, in Chainer's names",
    "https://github.com/rezoo/tgan2/releases/download/v1.0/conv3d_deepnetA_ucf.npz",
    note="TGANv2's (github.com/pfnet-research/tgan2, README).",
)
C3D_MEAN = PublishedFile(
    "mean2.npz",
    "the mean of C3D's training clips",
    "https://github.com/rezoo/tgan2/releases/download/v1.0/mean2.npz",
    note="TGANv2's (github.com/pfnet-research/tgan2, README).",
)
_CLIP_URL = "https://huggingface.co/openai/clip-vit-base-patch32/resolve/b33cedfd0df4e43b8238760678fcc89e1a0d38b3/"
_CLIP_SOURCE = "github.com/devnull03/qrate, scripts/fetch-clip-weights.sh"
CLIP = PublishedFile(
    "model.safetensors",
    "CLIP ViT-B/32, in Hugging Face's names; config.json lies beside it",
    _CLIP_URL + "model.safetensors",
    "99d28a652e6ec46629ab7047a0ac82c69b1fe11e0ce672c43af65d3a9a3fc05d",
    _CLIP_SOURCE,
    "The repository's main branch may have pytorch_model.bin alone; this is a revision with safetensors.",
)
CLIP_CONFIG = PublishedFile("config.json", "the sizes of CLIP ViT-B/32", _CLIP_URL + "config.json")
CLIP_TOKENIZER = PublishedFile(
    "tokenizer.json",
    "CLIP's tokenizer",
    _CLIP_URL + "tokenizer.json",
    "b556ac8c99757ffb677208af34bc8c6721572114111a6e0aaf5fa69ff0b8d842",
    _CLIP_SOURCE,
)


def find(wanted: PublishedFile, path: str | os.PathLike[str]) -> pathlib.Path:
    """The file at `path`, or the one of the published name in the directory `path`.

    Raises:
      FileNotFoundError: it is not there; says which file, whence, and its hash if one is known.
    """
    path = pathlib.Path(path)
    file = path / wanted.name if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist. It is to be\n{wanted.describe()}")
    return file


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What can be said of a file, to be written beside a score.

    Attributes:
      file: its name.
      sha256: of its bytes.
      is_published: whether they are the published ones; None where no hash is published. The same weights in another
        format are other bytes.
    """

    file: str
    sha256: str
    is_published: bool | None


def provenance(wanted: PublishedFile, path: str | os.PathLike[str]) -> Provenance:
    """Reads the file that `find` finds, and compares its hash.

    Raises:
      FileNotFoundError: as `find`.
    """
    file = find(wanted, path)
    sha256 = file_sha256(file)
    return Provenance(file.name, sha256, None if wanted.sha256 is None else sha256 == wanted.sha256)
