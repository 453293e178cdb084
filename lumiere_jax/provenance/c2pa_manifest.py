"""Signed manifests by the C2PA specification ("content credentials"), where the package `c2pa-python` is installed.

A manifest lies inside of the file, and its signature covers the file's content: whoever reads it sees who signed, that
a model made the content and with which settings, and whether anything was changed since. It is not part of the pixels:
a programme that does not know of it leaves it out when it writes the file again.
"""

import dataclasses
import io
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from lumiere_jax import __version__
from lumiere_jax.data.video_io import write_png
from lumiere_jax.provenance.metadata import SOURCE_TYPE, provenance

SETTINGS = "lumiere_jax.settings"
"""Label of the assertion that holds the facts."""

_MISSING = "manifests need the package c2pa-python: pip install 'lumiere-jax[c2pa]'"
_MEDIA_TYPES = {".mp4": "video/mp4", ".gif": "image/gif", ".png": "image/png"}


@dataclasses.dataclass(frozen=True)
class Signer:
    """Signs files.

    Attributes:
      certificates: PEM, the signer's own first, then those up to the one below the root.
      key: PEM of the private key, without a password.
      algorithm: as C2PA names it.
    """

    certificates: bytes
    key: bytes = dataclasses.field(repr=False)
    algorithm: str

    def sign(self, file: str | os.PathLike[str], title: str, facts: Mapping[str, Any]) -> None:
        """Puts a manifest into an mp4, GIF or PNG.

        Args:
          file: is replaced when the signed one is complete.
          title: of the file.
          facts: of `metadata.provenance`.

        Raises:
          ValueError: it cannot be signed.
        """
        file = pathlib.Path(file)
        partial = file.with_name(f".{file.name}.partial")
        try:
            with file.open("rb") as source, partial.open("w+b") as signed:
                self._sign(_MEDIA_TYPES[file.suffix], source, signed, title, facts)
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)

    def _sign(self, media_type: str, source: Any, signed: Any, title: str, facts: Mapping[str, Any]) -> None:
        import c2pa

        try:
            info = c2pa.C2paSignerInfo(self.algorithm, self.certificates, self.key, None)
            with c2pa.Signer.from_info(info) as signer, c2pa.Builder(manifest(title, facts)) as builder:
                builder.sign(signer, media_type, source, signed)
        except c2pa.C2paError as error:
            raise ValueError(f"cannot be signed with the given certificate and key: {error}") from error


def read_signer(certificate: str | os.PathLike[str], key: str | os.PathLike[str]) -> Signer:
    """A signer of two PEM files, which has signed something already: no clip is made that cannot be signed.

    Args:
      certificate: the signer's own, then those that vouch for it. C2PA allows none that vouches for itself.
      key: of an elliptic curve (P-256, P-384, P-521), Ed25519, or RSA (PS256).

    Raises:
      ImportError: c2pa-python is not installed.
      OSError: a file cannot be read.
      ValueError: they are not what is needed, or do not belong together.
    """
    try:
        import c2pa  # noqa: F401
    except ImportError as error:
        raise ImportError(_MISSING) from error
    secret = pathlib.Path(key).read_bytes()
    signer = Signer(pathlib.Path(certificate).read_bytes(), secret, _algorithm(secret, str(key)))
    picture = io.BytesIO()
    write_png(picture, np.zeros((8, 8, 3), np.uint8))
    picture.seek(0)
    try:
        signer._sign("image/png", picture, io.BytesIO(), "trial", provenance({}))
    except ValueError as error:
        raise ValueError(f"{certificate} and {key}: {error}") from error
    return signer


def manifest(title: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What is signed: who made the content, how it came about, and the facts."""
    agent = {"name": "lumiere-jax", "version": __version__}
    created = {"action": "c2pa.created", "digitalSourceType": facts[SOURCE_TYPE], "softwareAgent": agent}
    return {
        "claim_generator_info": [agent],
        "title": title,
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": [created]}},
            # As text: readers show lists of small numbers as if they were bytes.
            {"label": SETTINGS, "data": {"json": json.dumps(facts)}},
        ],
    }


def _algorithm(key: bytes, name: str) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        found = load_pem_private_key(key, password=None)
    except (TypeError, ValueError) as error:  # TypeError: it is encrypted
        raise ValueError(f"{name} is no private key that can be read, as PEM without a password: {error}") from error
    if isinstance(found, ec.EllipticCurvePrivateKey):
        algorithm = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}.get(found.curve.name)
    else:
        kinds = {ed25519.Ed25519PrivateKey: "ed25519", rsa.RSAPrivateKey: "ps256"}
        algorithm = next((algorithm for kind, algorithm in kinds.items() if isinstance(found, kind)), None)
    if algorithm is None:
        raise ValueError(f"{name} is of a kind that C2PA does not sign with: see --help")
    return algorithm
