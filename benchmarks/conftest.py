"""Options, machine description and the list of absent libraries, for ``pytest benchmarks``."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import baselines, contest, machine
from benchmarks.groups import FAMILIES


def pytest_addoption(parser):
    options = parser.getgroup("amkd_fast")
    options.addoption("--results", type=Path, help="folder for <family>-<device>.json, of whole families alone")
    options.addoption("--quick", action="store_true", help="two rounds: shows that it runs, not how fast")


@pytest.fixture(scope="session", autouse=True)
def _threads():
    machine.use_threads()


def pytest_benchmark_update_machine_info(config, machine_info):
    machine.use_threads()
    machine_info["amkd_fast"] = machine.describe()


def pytest_terminal_summary(terminalreporter):
    terminalreporter.section("not in the comparison")
    for device in contest.devices():
        absent = baselines.missing(device)
        for family in FAMILIES:
            absent |= contest.missing(family, device)
        for name, reason in absent.items():
            terminalreporter.write_line(f"{device}: {name}: {reason}")
