"""Reading of compiled programs, on small texts whose counts are known by hand."""

import pytest

from vaejax.devices.compiled_text import hottest_work

# A step of a loop of 10: two fusions, a copy, a product by a library and one fused, a sum over devices, in f32.
GPU = """
HloModule jit_fit, is_scheduled=true, entry_computation_layout={(f32[4,8]{1,0})->f32[4,8]{1,0}}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%fused_gather (p0: f32[100,8], p1: s32[4,1]) -> f32[4,8] {
  %p0 = f32[100,8]{1,0} parameter(0)
  %p1 = s32[4,1]{1,0} parameter(1)
  %other = f32[100,8]{1,0} bitcast(%p0)
  %rows = f32[4,8]{1,0} gather(%other, %p1), offset_dims={1}, collapsed_slice_dims={0}, slice_sizes={1,8}
  ROOT %twice = f32[4,8]{1,0} add(%rows, %rows)
}

%fused_history (h0: f32[1000], h1: f32[], h2: s32[]) -> f32[1000] {
  %h0 = f32[1000]{0} parameter(0)
  %h1 = f32[] parameter(1)
  %new = f32[1]{0} bitcast(%h1)
  %h2 = s32[] parameter(2)
  ROOT %written = f32[1000]{0} dynamic-update-slice(%h0, %new, %h2)
}

%product (d0: f32[4,8], d1: f32[8,16]) -> f32[4,16] {
  %d0 = f32[4,8]{1,0} parameter(0)
  %d1 = f32[8,16]{1,0} parameter(1)
  ROOT %dot.1 = f32[4,16]{1,0} dot(%d0, %d1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (state: (s32[], f32[100,8], s32[4,1], f32[1000])) -> (s32[], f32[100,8], s32[4,1], f32[1000]) {
  %state = (s32[], f32[100,8]{1,0}, s32[4,1]{1,0}, /*index=3*/f32[1000]{0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %data = f32[100,8]{1,0} get-tuple-element(%state), index=1
  %places = s32[4,1]{1,0} get-tuple-element(%state), index=2
  %history = f32[1000]{0} get-tuple-element(%state), index=3
  %batch = f32[4,8]{1,0} fusion(%data, %places), kind=kLoop, calls=%fused_gather
  %weights = f32[8,16]{1,0} constant({...})
  %hidden = f32[4,16]{1,0} fusion(%batch, %weights), kind=kCustom, calls=%product
  %back = (f32[8,16]{1,0}, s8[64]{0}) custom-call(%batch, %hidden), custom_call_target="__cublas$gemm", \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["0"]}}}
  %gradient = f32[8,16]{1,0} get-tuple-element(%back), index=0
  %summed = f32[8,16]{1,0} all-reduce-start(%gradient), replica_groups={{0,1}}, to_apply=%add
  %done = f32[8,16]{1,0} all-reduce-done(%summed)
  %number = f32[] constant(1)
  %history.1 = f32[1000]{0} fusion(%history, %number, %i), kind=kLoop, calls=%fused_history
  %copy.1 = f32[1000]{0} copy(%history.1)
  ROOT %next = (s32[], f32[100,8]{1,0}, s32[4,1]{1,0}, f32[1000]{0}) tuple(%i, %data, %places, %copy.1)
}

%condition (state: (s32[], f32[100,8], s32[4,1], f32[1000])) -> pred[] {
  %state = (s32[], f32[100,8]{1,0}, s32[4,1]{1,0}, f32[1000]{0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %end = s32[] constant(10)
  ROOT %more = pred[] compare(%i, %end), direction=LT
}

ENTRY %main (data: f32[100,8], places: s32[4,1], history: f32[1000]) -> f32[1000] {
  %data = f32[100,8]{1,0} parameter(0)
  %places = s32[4,1]{1,0} parameter(1)
  %history = f32[1000]{0} parameter(2)
  %zero = s32[] constant(0)
  %copied = f32[1000]{0} copy(%history)
  %first = (s32[], f32[100,8]{1,0}, s32[4,1]{1,0}, f32[1000]{0}) tuple(%zero, %data, %places, %copied)
  %loop = (s32[], f32[100,8]{1,0}, s32[4,1]{1,0}, f32[1000]{0}) while(%first), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"10"}}
  ROOT %last = f32[1000]{0} get-tuple-element(%loop), index=3
}
"""
KNOWN = ', backend_config={"known_trip_count":{"n":"10"}}'


def test_a_step_by_hand():
    work = hottest_work(GPU, on_gpu=True)
    assert (work.passes, work.kernels, work.all_reduces, work.host_transfers) == (10, 6, 1, 0)
    assert work.flops == {"f32": 2 * 4 * 8 * 16 * 2}
    assert work.network_bytes == 4 * 8 * 16
    gathered = 4 * (4 * 8 + 4 + 4 * 8)  # of 100 rows 4, their numbers, and what is written
    history = 4 + 4 + 4  # of 1,000 numbers one, read and written, and its place
    product = 4 * (4 * 8 + 8 * 16 + 4 * 16)
    library = 4 * (4 * 8 + 4 * 16 + 8 * 16) + 64
    assert work.bytes_accessed == gathered + history + product + library + 2 * 4 * 8 * 16 + 2 * 4 * 1000


def test_an_unknown_length_waits_for_the_host_on_a_gpu_alone():
    known = hottest_work(GPU.replace(KNOWN, ""), on_gpu=True)
    assert (known.passes, known.host_transfers) == (10, 0)  # from 0 to a constant
    text = GPU.replace(KNOWN, "").replace("%zero = s32[] constant(0)", "%zero = s32[] constant(3)")
    on_gpu, on_tpu = (hottest_work(text, on_gpu) for on_gpu in (True, False))
    assert (on_gpu.passes, on_gpu.host_transfers) == (None, 1)
    assert (on_tpu.passes, on_tpu.host_transfers) == (None, 0)


def in_the_step(line):
    return GPU.replace("  ROOT %next", f"  {line}\n  ROOT %next")


@pytest.mark.parametrize(
    ("line", "kernels", "waits"),
    [
        ("%c = f32[4]{0} conditional(%p, %number, %number), true_computation=%add, false_computation=%add", 1, 1),
        ("%w = f32[4]{0} while(%number), condition=%unknown, body=%unknown", 0, 1),
        ('%w = f32[4]{0} while(%number), body=%add, backend_config={"known_trip_count":{"n":"5"}}', 5, 0),
        ('%c = f32[4]{0} custom-call(%number), custom_call_target="xla_ffi_python_gpu_callback"', 1, 1),
        ("%o = token[] outfeed(%number)", 1, 1),
        ("%h = f32[4]{0:S(5)} copy(%number)", 1, 1),
        ("%b = f32[4,1]{1,0} bitcast(%number)", 0, 0),
        ('%a = f32[4]{0} custom-call(), custom_call_target="AllocateBuffer"', 0, 0),
        ("%a = ((f32[4]{0}), f32[4]{0}) async-start(%number), calls=%add", 1, 0),
        ("%s = (f32[4]{0}, s32[4]{0}) sort(%number, %i), dimensions={0}, to_apply=%add", 1, 0),
    ],
)
def test_what_is_a_launch_and_what_waits(line, kernels, waits):
    work, before = (hottest_work(text, on_gpu=True) for text in (in_the_step(line), GPU))
    assert work.kernels - before.kernels == kernels
    assert work.host_transfers - before.host_transfers == waits
    assert work.callbacks == (("xla_ffi_python_gpu_callback",) if "callback" in line else ())


def test_on_a_tpu_single_numbers_are_free_and_so_is_its_inner_memory():
    add = "%t = s32[]{:T(128)} add(%i, %i)"
    assert hottest_work(in_the_step(add), on_gpu=False).kernels == hottest_work(GPU, on_gpu=False).kernels
    assert hottest_work(in_the_step(add), on_gpu=True).kernels == hottest_work(GPU, on_gpu=True).kernels + 1
    near, far = ("%n = f32[8,128]{1,0:T(8,128)S(1)} negate(%i)", "%n = f32[8,128]{1,0:T(8,128)} negate(%i)")
    moved = [hottest_work(in_the_step(line), on_gpu=False).bytes_accessed for line in (near, far)]
    assert moved[1] - moved[0] == 4 * 8 * 128


@pytest.mark.parametrize(
    ("line", "flops"),
    [
        # 4x4 kernels of 3 inputs and 8 outputs, at 16 x 16 places of 5 images.
        (
            "%c = f32[5,16,16,8]{3,2,1,0} convolution(%x, %k), window={size=4x4 stride=2x2 pad=1_1x1_1}, "
            "dim_labels=b01f_01io->b01f",
            2 * 5 * 16 * 16 * 8 * 4 * 4 * 3,
        ),
        # A transposed one: three of four of its inputs are zeros.
        (
            "%c = f32[5,16,16,8]{3,2,1,0} convolution(%x, %k), window={size=4x4 pad=2_2x2_2 lhs_dilate=2x2}, "
            "dim_labels=b01f_01io->b01f",
            2 * 5 * 16 * 16 * 8 * 4 * 4 * 3 // 4,
        ),
        # A TPU writes matrix products so.
        ("%c = f32[5,16]{1,0} convolution(%m, %n), dim_labels=bf_io->bf", 2 * 5 * 16 * 7),
        ("%c = f32[2,5,16]{2,1,0} dot(%s, %t), lhs_batch_dims={0}, lhs_contracting_dims={2}", 2 * 2 * 5 * 16 * 7),
        ("%c = f32[5,16]{1,0} negate(%m)", 0),
    ],
)
def test_multiplications_by_hand(line, flops):
    shapes = {"x": "5,32,32,3", "k": "4,4,3,8", "m": "5,7", "n": "7,16", "s": "2,5,7", "t": "2,7,16"}
    given = "\n".join(f"  %{name} = f32[{shape}] parameter({i})" for i, (name, shape) in enumerate(shapes.items()))
    text = f"ENTRY %main (x: f32[5,32,32,3]) -> f32[5] {{\n{given}\n  ROOT {line}\n}}"
    work = hottest_work(text, on_gpu=True)
    assert (work.passes, sum(work.flops.values()), work.kernels) == (1, flops, 1)


def test_the_hottest_of_several_loops_is_counted():
    """A longer loop of less work, a nested one of more: what is counted is the body that takes most of the time."""
    text = in_the_step('%w = f32[4]{0} while(%number), body=%inner, backend_config={"known_trip_count":{"n":"50"}}')
    inner = """
%inner (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %y = f32[4]{0} negate(%x)
  ROOT %z = f32[4]{0} negate(%y)
}
"""
    work = hottest_work(text.replace("\nENTRY", inner + "\nENTRY"), on_gpu=True)
    assert (work.passes, work.kernels) == (50, 2)
    once = hottest_work(text.replace("\nENTRY", inner + "\nENTRY").replace('"50"', '"1"'), on_gpu=True)
    assert (once.passes, once.kernels) == (10, 8)
