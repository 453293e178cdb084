"""The cost of a compiled TPU program, from a text small enough to add up by hand."""

import pytest

from lumiere_jax.distributed.compiled_program import cost_of

PROGRAM = """HloModule jit_step, is_scheduled=true

%fused_convolution (p: bf16[8,128], q: bf16[128,128]) -> bf16[8,128] {
  %p = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %q = bf16[128,128]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %c = bf16[8,128]{1,0:T(8,128)(2,1)} convolution(%p, %q), dim_labels=bf_io->bf
}

%fused_scatter (p: f32[64,128]) -> f32[16,128] {
  %p = f32[64,128]{1,0:T(8,128)} parameter(0)
  %r = f32[64,128]{1,0:T(8,128)} all-reduce(%p), replica_groups=[1,4]<=[4], to_apply=%add
  ROOT %s = f32[16,128]{1,0:T(8,128)} dynamic-slice(%r), dynamic_slice_sizes={16,128}
}

%fused_sum (p: f32[64,128]) -> f32[64] {
  %p = f32[64,128]{1,0:T(8,128)} parameter(0)
  ROOT %s = f32[64]{0:T(256)} reduce(%p), dimensions={1}, to_apply=%add
}

%fused_move (p: f32[64,128]) -> f32[128,64] {
  %p = f32[64,128]{1,0:T(8,128)} parameter(0)
  ROOT %t = f32[128,64]{0,1:T(8,128)} transpose(%p), dimensions={1,0}
}

%fused_add (p: f32[64,128]) -> f32[64,128] {
  %p = f32[64,128]{1,0:T(8,128)} parameter(0)
  ROOT %a = f32[64,128]{1,0:T(8,128)} add(%p, %p)
}

%body (state: (bf16[8,128], bf16[128,128])) -> (bf16[8,128], bf16[128,128]) {
  %state = (bf16[8,128]{1,0}, bf16[128,128]{1,0}) parameter(0)
  %f = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} fusion(%state), kind=kOutput, calls=%fused_convolution, backend_config={"window_config":{"estimated_cycles":"100"}}
  %g = (bf16[2,128]{1,0}, bf16[8,128]{1,0}) all-gather-start(%f), replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %t = (bf16[8,128]{1,0}, bf16[128,128]{1,0}) tuple(%f, %state)
}

%condition (state: (bf16[8,128], bf16[128,128])) -> pred[] {
  %state = (bf16[8,128]{1,0}, bf16[128,128]{1,0}) parameter(0)
  ROOT %less = pred[] compare(%state, %state), direction=LT
}

ENTRY %main (x: f32[64,128]) -> f32[64,128] {
  %x = f32[64,128]{1,0:T(8,128)} parameter(0)
  %loop = (bf16[8,128]{1,0}, bf16[128,128]{1,0}) while(%x), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %scatter = f32[16,128]{1,0:T(8,128)} fusion(%x), kind=kCustom, calls=%fused_scatter
  %sum = f32[64]{0:T(256)} fusion(%x), kind=kLoop, calls=%fused_sum, backend_config={"window_config":{"estimated_cycles":"30"}}
  %move = f32[128,64]{0,1:T(8,128)} fusion(%x), kind=kLoop, calls=%fused_move, backend_config={"window_config":{"estimated_cycles":"7"}}
  %copy = f32[64,128]{0,1:T(8,128)} copy(%x), backend_config={"window_config":{"estimated_cycles":"4"}}
  %halo = (f32[1,128]{1,0}, f32[1,128]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), source_target_pairs={{0,1},{1,2}}
  %all = f32[64,128]{1,0:T(8,128)} all-reduce(%x), replica_groups=[2,2]<=[4], to_apply=%add
  ROOT %out = f32[64,128]{1,0:T(8,128)} fusion(%all), kind=kLoop, calls=%fused_add, backend_config={"window_config":{"estimated_cycles":"11"}}
}
"""  # noqa: E501


def test_cycles_by_kind_of_work_and_loops_as_often_as_they_run():
    assert cost_of(PROGRAM).cycles == {"matrix": 5 * 100, "reduce": 30, "copy": 7 + 4, "elementwise": 11}


def test_a_move_without_an_estimate_is_read_and_written():
    moves = "  %joined = f32[70,128]{1,0:T(8,128)} concatenate(%x, %x), dimensions={0}\n"
    moves += '  %other = f32[9,128]{1,0} pad(%x, %x), padding=0_1x0_0, backend_config={"estimated_cycles":"3"}\n'
    text = PROGRAM.replace("  %scatter", moves + "  %scatter")
    cycles = cost_of(text, cycles_of_byte=0.5).cycles
    assert (cycles["copy"], cycles["elementwise"]) == (7 + 4 + 2 * 70 * 128 * 4 * 0.5, 11 + 3)
    with pytest.raises(ValueError, match="a move without an estimate: give cycles_of_byte: %joined"):
        cost_of(text)


KNOWN = ', backend_config={"known_trip_count":{"n":"5"}}'
COUNTED = """
%condition (state: (s32[], bf16[8,128])) -> pred[] {
  %limit = s32[]{:T(128)} constant(7)
  %state = (s32[]{:T(128)}, bf16[8,128]{1,0}) parameter(0)
  %count = s32[]{:T(128)} get-tuple-element(%state), index=0
  ROOT %less = pred[]{:T(512)} compare(%count, %limit), direction=LT
}
"""


def test_a_loop_that_the_compiler_does_not_count_is_read_from_its_condition():
    """As scan and map compile today: the estimate of a step was once that of a single turn of each."""
    before, condition, rest = PROGRAM.partition("\n%condition ")
    rest = rest[rest.index("}\n") + 2 :].replace(KNOWN, "")
    assert condition
    cost = cost_of(before + COUNTED + rest)
    assert cost.cycles["matrix"] == 7 * 100
    assert cost.collectives["all-gather"] == 7
    with pytest.raises(ValueError, match="a loop of unknown length: %loop"):
        cost_of(PROGRAM.replace(KNOWN, ""))


def test_what_a_chip_sends():
    cost = cost_of(PROGRAM)
    assert cost.collectives == {"all-gather": 5, "reduce-scatter": 1, "collective-permute": 1, "all-reduce": 1}
    whole = 64 * 128 * 4
    assert cost.sent == {
        "all-gather": 5 * 8 * 128 * 2 * 3 / 4,
        "reduce-scatter": whole * 3 / 4,
        "collective-permute": 128 * 4,
        "all-reduce": 2 * whole / 2,
    }


STARTED = """
%started (p: bf16[2,128]) -> bf16[8,128] {
  %p = bf16[2,128]{1,0} parameter(0)
  ROOT %g = bf16[8,128]{1,0} all-gather(%p), channel_id=4, replica_groups=mesh['a'=4,'b'=1,'c'=2] {'a','b'}, dimensions={0}
}

%goes_on (p: bf16[2,128]) -> bf16[8,128] {
  %p = bf16[2,128]{1,0} parameter(0)
  ROOT %g = bf16[8,128]{1,0} all-gather(%p), channel_id=4, replica_groups=mesh['a'=4,'b'=1,'c'=2] {'a','b'}, dimensions={0}
}

ENTRY """  # noqa: E501


def test_what_is_sent_beside_other_work_is_sent_once():
    """The chips of a group are those along some axes of a mesh."""
    calls = "  %s = bf16[8,128]{1,0} fusion(%x), kind=kCustom, calls=%started\n"
    calls += "  %d = bf16[8,128]{1,0} fusion(%x), kind=kCustom, calls=%goes_on\n"
    text = PROGRAM.replace("ENTRY ", STARTED).replace("  %scatter", calls + "  %scatter")
    before, after = cost_of(PROGRAM), cost_of(text)
    assert after.collectives["all-gather"] == before.collectives["all-gather"] + 1
    assert after.sent["all-gather"] == before.sent["all-gather"] + 8 * 128 * 2 * 3 / 4


KERNEL = """  %splash_mha_fwd_segmented.1 = (f32[4,512,128]{2,1,0}, bf16[4,10,96,64]{3,2,1,0}) custom-call(%x, %x), custom_call_target="tpu_custom_call", operand_layout_constraints={s8[1,1,3]{2,1,0}, bf16[4,10,64,96]{3,2,1,0}, bf16[4,10,64,256]{3,2,1,0}, s32[96,128]{1,0}}, frontend_attributes={kernel_metadata={
"a": 1
}}
"""  # noqa: E501


def test_a_kernel_takes_cycles_for_each_attention_weight():
    text = PROGRAM.replace("  %scatter", KERNEL + "  %scatter")
    assert cost_of(text, {"splash_mha_fwd": {"weights": 0.5}}).cycles["kernel"] == 4 * 10 * 96 * 256 / 2
    for known in (None, {"splash_mha_dkv": {"weights": 0.5}}):
        with pytest.raises(ValueError, match="a kernel whose cycles are not known: %splash_mha_fwd"):
            cost_of(text, known)


def test_a_normalised_convolution_takes_cycles_for_products_values_and_taps():
    """The video is the first operand of four axes, the weights are the last of three; channels fill whole lanes."""
    arrays = "bf16[1,4096,80,320]{3,2,1,0:T(8,128)(2,1)}, f32[1,80,320]{2,1,0}, f32[1,80,320]{2,1,0}, "
    arrays += "bf16[3,320,640]{2,1,0}, bf16[1,640]{1,0}"
    kernel = "  %normalized_conv_forward.7 = (bf16[1,4096,80,640]{3,2,1,0}) custom-call(%x), custom_call_target="
    kernel += f'"tpu_custom_call", operand_layout_constraints={{{arrays}}}, frontend_attributes={{}}\n'
    known = {"normalized_conv_forward": {"products": 1.0, "values": 1e15, "taps": 1e24}}
    cycles = cost_of(PROGRAM.replace("  %scatter", kernel + "  %scatter"), known).cycles["kernel"]
    values = 4096 * 80 * 384
    assert cycles == pytest.approx(values * 3 * 640 + 1e15 * values + 1e24 * values * 3, rel=1e-15)


@pytest.mark.parametrize("text", ["", PROGRAM.replace("estimated_cycles", "cycles"), PROGRAM.replace("ENTRY ", "")])
def test_another_text_is_refused(text):
    with pytest.raises(ValueError, match="not the text of a compiled TPU program"):
        cost_of(text)
