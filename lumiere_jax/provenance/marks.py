"""What files of generated pixels get beside their metadata, where it is asked for: a watermark, a signed manifest."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import flags
from absl.flags import FLAGS
from jaxtyping import UInt8

from lumiere_jax.distributed import processes
from lumiere_jax.provenance.c2pa_manifest import Signer, read_signer
from lumiere_jax.provenance.watermark import PUBLIC_KEY, Watermark
from lumiere_jax.provenance.watermark_detection import detect


@dataclasses.dataclass(frozen=True)
class Marks:
    """Default: none.

    Attributes:
      watermark: of the frames of clips.
      signer: of all files.
    """

    watermark: Watermark | None = None
    signer: Signer | None = None

    def on_frame(self, image: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width 3"]:
        """A clip's frame as it is to be written."""
        return image if self.watermark is None else self.watermark.marked(image)

    def facts(self) -> dict[str, Any]:
        """For metadata."""
        return {} if self.watermark is None else {"watermark": self.watermark.facts()}

    def check(self, clip: str | os.PathLike[str]) -> dict[str, Any]:
        """The facts for a written clip's sidecar: not that a watermark was asked for, but whether it is found."""
        if self.watermark is None:
            return {}
        found = detect(clip, self.watermark.key)
        if not found.found:
            processes.say(f"warning: {clip}: its watermark is too weak to be found: its frames are small, or few")
        return {"watermark": {**self.watermark.facts(), "found": found.found, "score": round(found.score, 2)}}

    def sign(self, file: str | os.PathLike[str], title: str, facts: Mapping[str, Any]) -> None:
        """Signs a file, of which these are title and facts."""
        if self.signer is not None:
            self.signer.sign(file, title, facts)


def define_provenance_flags() -> None:
    """What files get beside their metadata."""
    flags.DEFINE_bool("watermark", False, "Mark the frames of all clips invisibly: docs/provenance.md.")
    flags.DEFINE_string(
        "watermark_key", None, "Who does not know it can neither find the mark nor make it; default: a public one."
    )
    flags.DEFINE_string(
        "c2pa_certificate",
        None,
        "PEM file of the certificates of a signer, its own first: all files get a signed C2PA manifest.",
    )
    flags.DEFINE_string(
        "c2pa_key", None, "PEM file of its private key, without password: P-256, P-384, P-521, Ed25519 or RSA."
    )


def marks_of_flags() -> Marks:
    """The marks that the flags ask for.

    Raises:
      ValueError, OSError, ImportError: flags that say nothing, or as `read_signer`.
    """
    if FLAGS.watermark_key is not None and not FLAGS.watermark:
        raise ValueError("--watermark_key says nothing without --watermark")
    if (FLAGS.c2pa_certificate is None) != (FLAGS.c2pa_key is None):
        raise ValueError("--c2pa_certificate and --c2pa_key need each other")
    key = PUBLIC_KEY if FLAGS.watermark_key is None else FLAGS.watermark_key
    return Marks(
        watermark=Watermark(key) if FLAGS.watermark else None,
        signer=read_signer(FLAGS.c2pa_certificate, FLAGS.c2pa_key) if FLAGS.c2pa_key is not None else None,
    )
