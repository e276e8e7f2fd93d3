"""The ahead-of-time gate of the Triton kernels (tests/gates/triton_aot.py); it needs Triton and no GPU."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("Triton interprets in this process and cannot compile", allow_module_level=True)

from gates import triton_aot


@pytest.mark.parametrize("family", triton_aot.CALLS)
def test_kernels_compile_without_spills_and_with_wide_accesses(family):
    reports = list(triton_aot.compile_all(triton_aot.launches(family), triton_aot.ARCHITECTURES))
    assert {report.arch for report in reports} == set(triton_aot.ARCHITECTURES)
    assert any(report.launch.wide or report.launch.wide_stores for report in reports)
    assert not [f"{report}: {fault}" for report in reports for fault in report.faults]
