"""Detection of the watermark of `sample --watermark`: `python -m lumiere_jax.detect_watermark FILE... [--key=KEY]`.

For each file (a video, an animation, a picture of one frame), a line: whether it has the watermark; the score, in
standard deviations of what files without it give; the p-value, how probable so high a score is without it; and how much
of the frames there still is, where they were cropped. It is found where p is below one in a million
(docs/provenance.md).

Exit status, as of grep: 0 all files have it, 1 one or more do not, 2 one or more cannot be read.
"""

import sys

from absl import app, flags
from absl.flags import FLAGS

from lumiere_jax.data.video_io import VideoError
from lumiere_jax.provenance.watermark import PUBLIC_KEY
from lumiere_jax.provenance.watermark_detection import Detection, detect


def line(found: Detection) -> str:
    """What was found, for people."""
    what = "watermark found" if found.found else "no watermark"
    crop = f", {found.share:.0%} of the shorter side" if found.found and found.share < 1 else ""
    return f"{what} (score {found.score:.1f}, p {p_value(found.log10_p)}{crop})"


def p_value(log10_p: float) -> str:
    """`3e-84`, also where no floating point number is as small."""
    if log10_p > -2:
        return f"{10**log10_p:.2f}"
    exponent = int(log10_p // 1)
    return f"{10 ** (log10_p - exponent):.0f}e{exponent:03d}"


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_string("key", PUBLIC_KEY, "The --watermark_key that the files may have been made with.")


def main(arguments: list[str]) -> None:
    """Entry point."""
    files = arguments[1:]
    if not files:
        print("error: no file: give one or more", file=sys.stderr)
        sys.exit(2)
    status = 0
    for file in files:
        try:
            found = detect(file, FLAGS.key)
        except (OSError, VideoError) as error:
            print(f"error: {f'{file}: {error.strerror}' if isinstance(error, OSError) else error}", file=sys.stderr)
            status = 2
            continue
        print(f"{file}: {line(found)}")
        status = max(status, int(not found.found))
    sys.exit(status)


if __name__ == "__main__":
    define_flags()
    app.run(main)
