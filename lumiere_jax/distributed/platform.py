"""Process-wide XLA choices, made once by the entry points before JAX starts."""

import glob
import importlib.metadata
import importlib.util
import mmap
import os
import pathlib

import jax
import jaxlib

# XLA:CPU runs single convolutions through YNNPACK. At the widths of small U-Nets its own code takes half the time of
# theirs for a training step (measured on jaxlib 0.10.2 and 0.12.0: 3x3 and 3x1, 24 to 96 channels).
_CONVOLUTION_FLAG = "xla_cpu_experimental_ynn_fusion_type"
_CONVOLUTION_VALUE = "-individual_convolution"
# How a Cloud TPU machine shows its chips: up to v4, and from v5e on.
_TPU_CHIPS = ("/dev/accel*", "/dev/vfio/[0-9]*")


def configure() -> None:
    """Sets XLA's flags and turns the persistent compilation cache on; call it before the first use of a device.

    On a machine without accelerator it chooses the CPU, so that libtpu, which may be there to compile for TPUs, looks
    for none; and the faster convolutions, where this jaxlib has the choice. Compiled programs are kept in
    `~/.cache/lumiere_jax/xla`. Whatever the user set (XLA_FLAGS, JAX_COMPILATION_CACHE_DIR, `jax.config`) stays.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _is_cpu_only():
        if not jax.config.jax_platforms:
            jax.config.update("jax_platforms", "cpu")
        if _CONVOLUTION_FLAG not in flags and _jaxlib_has_convolution_flag():
            os.environ["XLA_FLAGS"] = f"{flags} --{_CONVOLUTION_FLAG}={_CONVOLUTION_VALUE}".strip()
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path("~/.cache/lumiere_jax/xla").expanduser()))


def _is_cpu_only() -> bool:
    """Whether JAX will run on the CPU, found out without starting it."""
    if jax.config.jax_platforms:
        return jax.config.jax_platforms == "cpu"
    has_tpu = importlib.util.find_spec("libtpu") is not None and any(map(glob.glob, _TPU_CHIPS))
    return not importlib.metadata.entry_points(group="jax_plugins") and not has_tpu


def _jaxlib_has_convolution_flag() -> bool:
    """Whether XLA knows flag and value; found by searching the library, as an unknown flag ends the process.

    Takes 0.3 s at most. A jaxlib that is laid out differently counts as not knowing them.
    """
    names = (_CONVOLUTION_FLAG.encode(), _CONVOLUTION_VALUE.removeprefix("-").upper().encode())
    for library in pathlib.Path(jaxlib.__file__).parent.glob("libjax_common.*"):
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return all(content.find(name) >= 0 for name in names)
    return False
