"""Signed manifests, read back by C2PA's own library; the certificates are made here, so nobody trusts them."""

import datetime
import io
import json

import pytest
from marked_clips import said_in, textured_clip

from lumiere_jax.data.video_io import decode_video, to_float
from lumiere_jax.pipelines.results import write_sheet, write_video
from lumiere_jax.provenance.c2pa_manifest import SETTINGS, read_signer
from lumiere_jax.provenance.marks import Marks
from lumiere_jax.provenance.metadata import COMPOSITE, GENERATED, SOURCE_TYPE

c2pa = pytest.importorskip("c2pa", reason="c2pa-python is not installed: pip install 'lumiere-jax[c2pa]'")
x509 = pytest.importorskip("cryptography.x509")
from cryptography.hazmat.primitives import hashes, serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa  # noqa: E402

KEYS = {
    "es256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "es384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ps256": lambda: rsa.generate_private_key(65537, 2048),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
}
MEDIA_TYPES = {".mp4": "video/mp4", ".gif": "image/gif", ".png": "image/png"}
FILES = ("clip.mp4", "clip.gif", "clip_sheet.png", "clip_xt.png", "both.png")
CLIP = to_float(textured_clip(4, 32, 32))


def _certificate(subject, public_key, issuer, issuer_key, *, may_issue):
    def name(text):
        attributes = {x509.NameOID.COMMON_NAME: text, x509.NameOID.ORGANIZATION_NAME: "tests"}
        return x509.Name([x509.NameAttribute(*each) for each in attributes.items()])

    now = datetime.datetime.now(datetime.UTC)
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only"), False
    )
    usage |= {"digital_signature": not may_issue, "key_cert_sign": may_issue, "crl_sign": may_issue}
    builder = (
        x509.CertificateBuilder(name(issuer), name(subject), public_key, x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=7))
        .add_extension(x509.BasicConstraints(may_issue, None), critical=True)
        .add_extension(x509.KeyUsage(**usage, decipher_only=False), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if not may_issue:
        purpose = x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.EMAIL_PROTECTION])
        builder = builder.add_extension(purpose, critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def write_credentials(directory, algorithm="es256", password=None):
    """PEM files of a chain and a key, for `read_signer`."""
    root_key, key = KEYS["es256"](), KEYS[algorithm]()
    root = _certificate("root", root_key.public_key(), "root", root_key, may_issue=True)
    own = _certificate("signer", key.public_key(), "root", root_key, may_issue=False)
    pem = serialization.Encoding.PEM
    (directory / "chain.pem").write_bytes(own.public_bytes(pem) + root.public_bytes(pem))
    locked = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    (directory / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, locked))
    return directory / "chain.pem", directory / "key.pem"


@pytest.fixture(scope="module")
def signed(tmp_path_factory):
    directory = tmp_path_factory.mktemp("signed")
    marks = Marks(signer=read_signer(*write_credentials(directory)))
    write_video(directory, "clip", CLIP, 8.0, {"prompt": "a red circle", "window": [4, 1]}, marks)
    write_sheet(directory / "both.png", [CLIP], "a red circle", {"window": [4, 1], SOURCE_TYPE: COMPOSITE}, marks)
    return directory


def verdict(content, media_type):
    """Validation state, codes of what failed, and the active manifest."""
    with c2pa.Reader(media_type, io.BytesIO(content)) as reader:
        failures = reader.get_validation_results()["activeManifest"]["failure"]
        # Our root is in nobody's list.
        codes = {failure["code"] for failure in failures} - {"signingCredential.untrusted"}
        return reader.get_validation_state(), codes, reader.get_active_manifest()


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_signed(signed, name):
    file = signed / name
    state, failures, manifest = verdict(file.read_bytes(), MEDIA_TYPES[file.suffix])
    assert (state, failures) == ("Valid", set())
    assert manifest["title"] == "a red circle"
    assertions = {each["label"]: each["data"] for each in manifest["assertions"]}
    (action,) = assertions["c2pa.actions.v2"]["actions"]
    assert action["action"] == "c2pa.created"
    assert action["digitalSourceType"] == (COMPOSITE if name == "both.png" else GENERATED)
    assert action["softwareAgent"]["name"] == "lumiere-jax"
    assert manifest["signature_info"]["common_name"] == "signer"
    facts = json.loads(assertions[SETTINGS]["json"])
    assert facts["window"] == [4, 1]
    assert said_in(file)[1]["window"] == [4, 1]  # other metadata stay


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_noticed(signed, name):
    content = bytearray((signed / name).read_bytes())
    # Of the pictures: an mp4 has other things behind them.
    at = content.find(b"mdat") + 40 if name.endswith(".mp4") else len(content) - 60
    content[at] ^= 255
    state, failures, _ = verdict(bytes(content), MEDIA_TYPES[(signed / name).suffix])
    assert state == "Invalid"
    assert failures & {"assertion.dataHash.mismatch", "assertion.bmffHash.mismatch"}


def test_signed_clips_play(signed):
    assert decode_video(signed / "clip.mp4")[0].shape == (4, 32, 32, 3)
    assert decode_video(signed / "clip.gif")[0].shape == (4, 32, 32, 3)


@pytest.mark.parametrize("algorithm", KEYS)
def test_kinds_of_keys(tmp_path, algorithm):
    signer = read_signer(*write_credentials(tmp_path, algorithm))
    assert signer.algorithm == algorithm
    assert str(signer.key) not in repr(signer)


def test_what_cannot_sign_is_told_at_once(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    chain, key = write_credentials(tmp_path / "one")
    _, other_key = write_credentials(tmp_path / "other")
    with pytest.raises(FileNotFoundError, match=r"none\.pem"):
        read_signer(chain, tmp_path / "none.pem")
    with pytest.raises(FileNotFoundError, match=r"none\.pem"):
        read_signer(tmp_path / "none.pem", key)
    with pytest.raises(ValueError, match=r"chain\.pem is no private key that can be read"):
        read_signer(chain, chain)
    with pytest.raises(ValueError, match="cannot be signed with the given certificate and key"):
        read_signer(key, key)
    with pytest.raises(ValueError, match="cannot be signed with the given certificate and key"):
        read_signer(chain, other_key)
    _, locked = write_credentials(tmp_path, password=b"secret")
    with pytest.raises(ValueError, match="no private key that can be read, as PEM without a password"):
        read_signer(chain, locked)
