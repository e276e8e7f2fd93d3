"""What is read out of a profiler's tables and events."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu import counters, limits, timeline
from benchmarks.gpu.calls import Call
from benchmarks.gpu.counters import METRICS, Refused
from benchmarks.gpu.timeline import Span
from benchmarks.roofline import Work

KERNEL = "void amkd::kl::(anonymous namespace)::forward_kernel<float, (amkd::kl::Form)1>(amkd::kl::Forward<float>)"
SPIN = "at::cuda::(anonymous namespace)::spin_kernel(long)"


def quoted(*cells):
    return ",".join(f'"{cell}"' for cell in cells)


def wide():
    figures = {"ns": "2,000", "read": "4,096", "written": "1.5", "registers": "40"}
    units = {"ns": "ns", "read": "byte", "written": "Kbyte", "registers": "register/thread"}
    names = list(figures)
    return [
        "==PROF== Connected to process 7 (/usr/bin/python3)",
        "what the program printed",
        quoted("ID", "Process ID", "Kernel Name", *(METRICS[name] for name in names)),
        quoted("", "", "", *(units[name] for name in names)),
        quoted("0", "7", SPIN, "900", "0", "0", "16"),
        quoted("1", "7", KERNEL, *figures.values()),
        "==PROF== Disconnected from process 7",
    ]


def long():
    rows = [("0", SPIN, "ns", "us", "0.9"), ("1", KERNEL, "ns", "us", "2"), ("1", KERNEL, "read", "Kbyte", "4.096")]
    rows.append(("1", KERNEL, "tensor", "%", "n/a"))
    return [
        quoted("ID", "Kernel Name", "Section Name", "Metric Name", "Metric Unit", "Metric Value"),
        *(quoted(i, kernel, "", METRICS[name], unit, value) for i, kernel, name, unit, value in rows),
    ]


def test_one_line_a_kernel_is_read_with_its_units():
    spin, ours = counters.parse(wide())
    assert spin["kernel"] == "spin_kernel"
    assert ours == {"kernel": "forward_kernel", "ns": 2000.0, "read": 4096.0, "written": 1500.0, "registers": 40.0}


def test_one_line_a_metric_is_read_with_its_units():
    assert counters.parse(long())[1] == {"kernel": "forward_kernel", "ns": 2000.0, "read": 4096.0, "tensor": None}


def test_no_table_gives_no_rows():
    assert counters.parse(["==ERROR== The application returned an error code (1)."]) == []


@pytest.mark.parametrize(
    ("kernel", "name"),
    [
        (KERNEL, "forward_kernel"),
        ("kl_rows_kernel", "kl_rows_kernel"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>>(int)", None),
    ],
)
def test_names_are_short(kernel, name):
    assert counters.short(kernel) == (name or "vectorized_elementwise_kernel")


def test_kernels_are_told_apart_by_call():
    rows = [{"kernel": name} for name in ("before", "spin_kernel", "a", "b", "spin_kernel", "spin_kernel", "c")]
    found = counters.by_call(rows, 3)
    assert [[row["kernel"] for row in call] for call in found] == [["a", "b"], [], ["c"]]
    with pytest.raises(Refused, match="3 calls in the table, should be 4"):
        counters.by_call(rows, 4)


def tool(tmp_path, monkeypatch, lines, code=0):
    """A stand-in for ncu, which writes ``lines`` into its log; every call's arguments go into a file."""
    script, calls = tmp_path / "ncu", tmp_path / "calls"
    text = "\\n".join(lines).replace("'", "")
    script.write_text(
        f'#!/bin/sh\necho "$@" >>{calls}\nwhile [ "$1" != --log-file ]; do shift; done\n'
        f"printf '%b\\n' '{text}' >\"$2\"\nexit {code}\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(counters, "find", lambda: str(script))
    return calls


def test_the_tool_is_asked_for_our_kernels_alone(tmp_path, monkeypatch):
    calls = tool(tmp_path, monkeypatch, wide())
    rows = counters.collect(["python", "-m", "program"], tmp_path / "log.csv", 60)
    assert [row["kernel"] for row in rows] == ["spin_kernel", "forward_kernel"]
    asked = calls.read_text()
    assert "--profile-from-start off" in asked
    assert "--clock-control none" in asked
    assert METRICS["read"] in asked


def test_a_tool_without_permission_says_so(tmp_path, monkeypatch):
    tool(tmp_path, monkeypatch, ["==ERROR== ERR_NVGPUCTRPERM - The user does not have permission"], 1)
    with pytest.raises(Refused, match="ERR_NVGPUCTRPERM"):
        counters.collect(["program"], tmp_path / "log.csv", 60)


def test_a_metric_that_is_unknown_is_left_out(tmp_path, monkeypatch):
    calls = tool(tmp_path, monkeypatch, ["==ERROR== Failed to find metric sm__x"], 1)
    with pytest.raises(Refused, match="Failed to find metric"):
        counters.collect(["program"], tmp_path / "log.csv", 60)
    first, second = calls.read_text().splitlines()
    assert METRICS["tensor"] in first
    assert METRICS["tensor"] not in second


def test_no_tool_is_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(counters, "find", lambda: None)
    with pytest.raises(Refused, match="not installed"):
        counters.collect(["program"], tmp_path / "log.csv", 60)


def test_a_call_is_held_against_its_limit():
    call = Call("kl", "kl_div", lambda device: lambda: None, Work(1000))
    parts = [
        {"kernel": "a", "ns": 300.0, "read": 900.0, "written": 100.0, "tensor": 7.0},
        {"kernel": "b", "ns": 100.0, "read": 200.0, "written": 0.0, "tensor": 50.0},
    ]
    row = limits.judged(call, "cuda", parts, {"copy": 5e9, "product": 1e12})
    assert row["us"] == pytest.approx(0.4)
    assert row["of_limit"] == pytest.approx(0.5)  # 1000 bytes at 5 GB/s are 200 ns
    assert row["moved_over_fewest"] == pytest.approx(1.2)
    assert row["gb_per_s"] == pytest.approx(3.0)
    assert row["of_copy"] == pytest.approx(0.6)
    assert row["tensor"] == 7.0
    bare = limits.judged(call, "cuda", [{"kernel": "a", "ns": 400.0}], {"copy": 5e9, "product": 1e12})
    assert "gb_per_s" not in bare
    assert limits.table({"kernels": {"rows": [row, bare], "rates": {"copy": 5e9, "product": 1e12}, "no_counters": ""}})


def test_gaps_are_where_nothing_runs():
    spans = [Span("conv", 0, 10_000), Span("amkd::x", 5_000, 12_000), Span("memset", 12_500, 13_000)]
    found = timeline.summary([*spans, Span("kl_rows_kernel", 20_000, 21_000)], host=50_000, launches=3)
    assert found["busy_us"] == pytest.approx(13.5)
    assert found["device_us"] == pytest.approx(21.0)
    assert found["idle_us"] == pytest.approx(7.5)
    assert found["gaps"] == 1  # half a microsecond is none
    assert found["longest_gap_us"] == pytest.approx(7.0)
    assert found["groups"]["ours"] == {"us": pytest.approx(8.0), "kernels": 2}
    assert (found["kernels"], found["launches"]) == (4, 3)


def test_nothing_on_the_device_is_no_time():
    assert timeline.summary([], host=1, launches=0)["idle_share"] is None


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("void amkd::attack::gpu::step_kernel<float, false>(StepCall<float>)", "ours"),
        ("attack_step_kernel", "ours"),
        ("sm90_xmma_fprop_implicit_gemm_tf32f32", "convolutions"),
        ("void at::native::vectorized_gather_kernel<16, long>(char*)", "other"),
        ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedSgdMathFunctor>()", "optimizer"),
        ("Memset (Device)", "copies and fills"),
    ],
)
def test_kernels_are_sorted_into_groups(name, group):
    assert timeline.group_of(name) == group


def test_traces_of_several_steps_stay_apart():
    trace = {"traceEvents": [{"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "python"}}]}
    events = timeline.joined({"KD": trace, "AMKD": trace})["traceEvents"]
    assert [event["args"]["name"] for event in events] == ["KD: python", "AMKD: python"]
    assert len({event["pid"] for event in events}) == 2


def test_a_recorded_call_waits_for_nothing_and_a_number_is_found():
    from benchmarks.gpu.guard import waits

    one = torch.ones(3)
    assert waits(lambda: one + one, "cpu") == ""
    assert "waits for the device" in waits(lambda: one.sum().item(), "cpu")
