"""What `make gpu` runs, in which call, and what it remembers."""

from __future__ import annotations

import importlib.util
import json
import sys
import tarfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "gpu" / "run.py"
NINE_MINUTES = 540


@pytest.fixture
def gpu(tmp_path, monkeypatch):
    """The script, with its own folders, sources that are there, and steps that take no time."""
    spec = importlib.util.spec_from_file_location("gpu_run", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    results, logs = tmp_path / "benchmarks" / "results", tmp_path / "build" / "gpu"
    for name, value in {"ROOT": tmp_path, "RESULTS": results, "LOGS": logs, "RECORD": results / "gpu_run.json"}.items():
        monkeypatch.setattr(script, name, value)
    (tmp_path / "amkd_fast").mkdir()
    (tmp_path / "setup.py").write_text("version = 1\n")
    monkeypatch.setattr(script, "machine", lambda: {"gpu": "none"})
    monkeypatch.setattr(sys, "argv", ["run.py"])
    for name in ("PART", "FORCE", "LIMIT", "OUT"):
        monkeypatch.delenv(name, raising=False)
    return script


def say(text, code=0):
    return [sys.executable, "-c", f"print({text!r}); raise SystemExit({code})"]


def small(script, **codes):
    return [
        script.Step("build", "build", say("built", codes.get("build", 0)), 100, table=False),
        script.Step("tests", "tests", say("tested", codes.get("tests", 0)), 300, table=False),
        script.Step("bench", "kl", say("a table of kl", codes.get("kl", 0)), 200),
    ]


def use(script, monkeypatch, **codes):
    monkeypatch.setattr(script, "steps", lambda dry_run=False: small(script, **codes))


def test_each_part_fits_into_one_call_with_a_build(gpu):
    every = gpu.steps()
    build = sum(step.budget for step in every if step.part == "build")
    for part in gpu.PARTS:
        own = sum(step.budget for step in every if step.part == part)
        assert 0 < own + build * (part != "build") <= gpu.LIMIT, part
    assert gpu.LIMIT <= NINE_MINUTES
    assert len({step.name for step in every}) == len(every)


def test_a_rehearsal_takes_no_gpu(gpu):
    for step in gpu.steps(dry_run=True):
        assert "cuda" not in step.command, step.name
        assert not any("compute-sanitizer" in word for word in step.command)


def test_an_unknown_part_is_refused(gpu, monkeypatch, capsys):
    monkeypatch.setenv("PART", "tests,bnech")
    assert gpu.main() == 2
    assert "PART='bnech': must be one of build, tests," in capsys.readouterr().err


def test_what_does_not_fit_comes_with_the_next_call(gpu, monkeypatch, capsys):
    use(gpu, monkeypatch)
    monkeypatch.setattr(gpu, "plan", lambda *a, plan=gpu.plan: plan(*a[:4], True, a[5]))  # the extension is there
    assert gpu.main() == 1  # 100 + 300 of 540 seconds leave no 200
    told = capsys.readouterr().out
    assert "tested" in told
    assert "left for the next call" in told
    assert gpu.main() == 0
    told = capsys.readouterr().out
    assert told.count("ok before") == 2
    assert "--- kl\na table of kl" in told
    assert set(json.loads(gpu.RECORD.read_text())["steps"]) == {"build", "tests", "kl"}


def test_a_build_comes_first_where_the_extension_is_not_there(gpu):
    every = small(gpu)
    assert gpu.plan(every, ("bench",), {"build"}, set(), False, 540) == {"build": "run", "kl": "run"}
    assert gpu.plan(every, ("bench",), {"build"}, set(), True, 540) == {"kl": "run"}


def test_what_failed_lets_others_go_first(gpu):
    fates = gpu.plan(small(gpu), gpu.PARTS, {"build"}, {"tests"}, True, 400)
    assert fates == {"build": "done", "tests": "later", "kl": "run"}


def test_other_sources_and_force_repeat_what_was_done(gpu, monkeypatch, capsys):
    use(gpu, monkeypatch)
    monkeypatch.setenv("PART", "tests")
    for _ in range(2):
        assert gpu.main() == 0
    assert "ok before" in capsys.readouterr().out
    monkeypatch.setenv("FORCE", "1")
    gpu.main()
    assert "ok before" not in capsys.readouterr().out
    monkeypatch.delenv("FORCE")
    (gpu.ROOT / "setup.py").write_text("version = 2\n")
    gpu.main()
    assert "ok before" not in capsys.readouterr().out


def test_a_failure_is_told_and_kept_and_stops_nothing(gpu, monkeypatch, capsys, tmp_path):
    use(gpu, monkeypatch, tests=3)
    monkeypatch.setenv("LIMIT", "600")
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    assert gpu.main() == 1
    told = capsys.readouterr().out
    assert "exit code 3" in told
    assert "a table of kl" in told
    assert json.loads(gpu.RECORD.read_text())["steps"]["tests"]["fault"] == "exit code 3"
    with tarfile.open(tmp_path / "out" / "gpu.tar.gz") as archive:
        names = set(archive.getnames())
    assert {"benchmarks/results/gpu_run.json", "build/gpu/gpu_tests.log", "build/gpu/gpu_kl.log"} <= names


def test_a_step_is_stopped_after_its_budget(gpu):
    gpu.LOGS.mkdir(parents=True)
    step = gpu.Step("bench", "slow", [sys.executable, "-c", "import time; time.sleep(60)"], 1)
    result = gpu.run(step, dry_run=True)
    assert result["fault"] == "stopped after its 1 s"
    assert result["seconds"] < 30
