"""The command that runs tests at every SIMD level: which levels, and whether a failure at one of them is told."""

from __future__ import annotations

import re

import levels
import pytest

from amkd_fast import backends, info

pytestmark = pytest.mark.skipif(backends.build_info() is None, reason="the extension is not built")


def test_levels_are_those_of_the_report():
    (said,) = re.findall(r"^CPU kernels .*; this CPU has (.*); in use: (.*)$", info.report(), re.MULTILINE)
    assert levels.usable() == said[0].split()
    assert said[1] in levels.usable()


def test_each_level_has_its_turn_and_the_extremes_meet():
    assert levels.pairs(["baseline"]) == [("baseline", "default")]
    every = levels.pairs(["baseline", "avx2", "avx512"])
    assert every[:3] == [("baseline", "default"), ("avx2", "avx2"), ("avx512", "avx512")]
    assert every[3:] == [("baseline", "avx512"), ("avx512", "default")]


def test_one_line_a_pair_and_a_failure_is_told(tmp_path, capsys, monkeypatch):
    (tmp_path / "test_here.py").write_text(
        "import os\n"
        "def test_told():\n"
        "    assert (os.environ['AMKD_FAST_SIMD'], os.environ['ATEN_CPU_CAPABILITY']) == ('baseline', 'avx2')\n"
        "    assert os.environ['AMKD_FAST_AUTOGRAD'] == 'python'\n"
    )
    monkeypatch.setattr(levels, "pairs", lambda usable: [("baseline", "default"), ("baseline", "avx2")])
    assert levels.main([str(tmp_path)]) == 1
    heading, first, fault, second = capsys.readouterr().out.splitlines()
    assert heading.split() == ["amkd_fast", "torch"]
    assert first.split()[:4] == ["baseline", "default", "1", "failed"]
    assert fault.strip().startswith("FAILED")
    assert second.split()[:4] == ["baseline", "avx2", "1", "passed"]
