"""The profile beside PyTorch: kinds of work are told apart, and its parts add up to a call."""

import pytest

from benchmarks import peer_profile, peer_report
from benchmarks.model_sizes import with_tables
from benchmarks.peer_networks import OURS, Competitor, Task
from benchmarks.peer_profile import KINDS, Profile

TASK = Task("image", "gradient", "test", frames=2, size=8, clips=1, dtype="float32", device="cpu", threads=1)
HLO = """
  %convolution.3 = f32[2,8,8,4]{3,2,1,0} convolution(%a, %b), window={size=3x3}
  %dot.1 = f32[128,4]{1,0} dot(%a, %b), metadata={op_name="jit(loss)/jvp()/conv_general_dilated" stack_frame_id=1}
  %dot.2 = f32[4,4]{1,0} dot(%a, %b), metadata={op_name="jit(loss)/transpose"}
  ROOT %ynn_fusion.1 = f32[2,4]{1,0} fusion(%a), kind=kCustom, metadata={op_name="jit(loss)/jvp()/dot_general"}
  %ynn_fusion.2 = f32[2]{0} fusion(%a), kind=kCustom, metadata={op_name="jit(loss)/reduce_sum"}
  %transpose_copy_fusion.104 = f32[4,8,8,2]{3,2,1,0} fusion(%a, /*index=5*/%b), kind=kLoop
  %add_divide_fusion = (f32[2,8], f32[2]) fusion(%a), kind=kLoop, metadata={op_name="jit(loss)/transpose(jvp())/div"}
"""


def test_kinds_of_xlas_instructions():
    assert peer_profile.kinds_of_instructions(HLO) == {
        "convolution.3": "convolutions",
        "dot.1": "convolutions",
        "dot.2": "products",
        "ynn_fusion.1": "products",
        "ynn_fusion.2": "the rest",
        "transpose_copy_fusion.104": "other order",
        "add_divide_fusion": "the rest",
    }


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("aten::convolution_backward", "convolutions"),
        ("aten::mkldnn_convolution", "convolutions"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "products"),
        ("aten::copy_", "other order"),
        ("## Call CompiledFxGraph f6y5 ##", "the rest"),
    ],
)
def test_kinds_of_pytorchs_operators(operator, kind):
    assert peer_profile.kind_of_operator(operator) == kind


def test_a_row():
    found = Profile(dict(zip(KINDS, (118.4, 10.0, 50.0, 70.0), strict=True)), 250.6)
    row = peer_profile.row(TASK, Competitor(OURS), found)
    assert row == "| image gradient | lumiere_jax, jit | 118 | 10 | 50 | 70 | 248 | 251 |"


def test_a_profile_in_its_own_process():
    found = peer_profile.in_a_process(TASK, Competitor(OURS))
    assert set(found.kinds) == set(KINDS)
    assert found.kinds["convolutions"] > 0
    assert found.kinds["the rest"] > 0
    assert sum(found.kinds.values()) == pytest.approx(found.call, rel=0.9)  # of a busy machine


def test_the_document_has_a_place_for_it():
    assert "a table\n<!-- end -->" in with_tables(peer_report.DOCUMENT.read_text(), {"peer_profile": "a table"})
