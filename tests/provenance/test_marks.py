"""The flags of `sample` that ask for marks: what says nothing, or cannot work, is told before anything is sampled."""

import functools
import sys

import pytest
from absl import flags

from lumiere_jax.provenance import marks
from lumiere_jax.provenance.watermark import Watermark


@pytest.fixture
def parsed(monkeypatch):
    def parse(*arguments):
        values = flags.FlagValues()
        with monkeypatch.context() as defining:
            for name in ("DEFINE_bool", "DEFINE_string"):
                defining.setattr(flags, name, functools.partial(getattr(flags, name), flag_values=values))
            marks.define_provenance_flags()
        values(["sample", *arguments])
        monkeypatch.setattr(marks, "FLAGS", values)
        return marks.marks_of_flags()

    return parse


def test_default_is_none(parsed):
    assert parsed() == marks.Marks() == marks.Marks(watermark=None, signer=None)


def test_watermark(parsed):
    assert parsed("--watermark").watermark == Watermark()
    assert parsed("--watermark", "--watermark_key=secret").watermark == Watermark("secret")
    assert "secret" not in repr(Watermark("secret"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--watermark_key=secret"], "--watermark_key says nothing without --watermark"),
        (["--watermark", "--watermark_key="], "key is empty"),
        (["--c2pa_key=key.pem"], "--c2pa_certificate and --c2pa_key need each other"),
        (["--c2pa_certificate=chain.pem"], "--c2pa_certificate and --c2pa_key need each other"),
    ],
)
def test_flags_that_say_nothing(parsed, arguments, message):
    with pytest.raises(ValueError, match=message):
        parsed(*arguments)


def test_the_missing_package_is_named(parsed, monkeypatch):
    monkeypatch.setitem(sys.modules, "c2pa", None)
    with pytest.raises(ImportError, match=r"pip install 'lumiere-jax\[c2pa\]'"):
        parsed("--c2pa_certificate=chain.pem", "--c2pa_key=key.pem")
