"""A compiled program in a file: compiled ahead of time on any machine, and loaded by the one whose devices it is for.

The first line of the file is JSON: what was compiled, by which versions, for which devices. After it comes what
`jax.experimental.serialize_executable` makes. That holds pickled objects, so load none that you do not trust.

On one machine there is no need for it: the persistent compilation cache (`platform.configure`) does the same by itself.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import pathlib

import jax
from jax.experimental import serialize_executable


def save_program(
    path: str | pathlib.Path, lowered: jax.stages.Lowered, compiled: jax.stages.Compiled, devices: list[jax.Device]
) -> None:
    """Writes a compiled program.

    Args:
      path: of the file; one that is there is replaced, once the new one is whole.
      lowered: what was compiled.
      compiled: `lowered.compile()`, by the compiler itself: what the persistent cache gives instead cannot be written
        again on a CPU (XLA leaves out its functions).
      devices: that it was compiled for.
    """
    content, _, _ = serialize_executable.serialize(compiled)
    path = pathlib.Path(path)
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_bytes(json.dumps(_facts(lowered, devices)).encode() + b"\n" + content)
    unfinished.replace(path)


def load_program(path: str | pathlib.Path, lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """The program of a file, without compiling it.

    Args:
      path: of the file.
      lowered: what it should be, for the devices of this process.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is another program, or for other devices, or of other versions of the libraries; or no program.
    """
    facts, newline, content = pathlib.Path(path).read_bytes().partition(b"\n")
    try:
        found = json.loads(facts)
    except ValueError:
        found = None
    if not newline or not isinstance(found, dict):
        raise ValueError(f"{path} is not a compiled program: make one with compile_for_tpu --save_program={path}")
    here = _facts(lowered, jax.devices())
    others = [name for name in here if found.get(name) != here[name]]
    if others:
        told = "; ".join(f"{name}: {found.get(name)} there, {here[name]} here" for name in others)
        raise ValueError(f"{path} cannot be used, compile it again. {told}")
    return serialize_executable.deserialize_and_load(content, lowered.in_tree, lowered.out_tree)


def _facts(lowered: jax.stages.Lowered, devices: list[jax.Device]) -> dict[str, str | int]:
    """What must be the same where a program was compiled and where it runs."""
    libraries = ["jax", "jaxlib"]
    if devices[0].platform == "tpu" and importlib.util.find_spec("libtpu"):
        libraries.append("libtpu")
    return {
        "program": hashlib.sha256(lowered.as_text().encode()).hexdigest(),
        "device": devices[0].device_kind,
        "devices": len(devices),
        **{library: importlib.metadata.version(library) for library in libraries},
    }
