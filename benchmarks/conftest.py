"""Threads, machine description and the list of absent peers, for every benchmark."""

from __future__ import annotations

import pytest

from benchmarks import contest, machine, peers


@pytest.fixture(scope="session", autouse=True)
def _threads():
    machine.use_threads()


def pytest_benchmark_update_machine_info(config, machine_info):
    machine.use_threads()
    machine_info["amkd_fast"] = machine.describe()


def pytest_terminal_summary(terminalreporter):
    terminalreporter.section("not in the comparison")
    absent = {}
    for device in contest.devices():
        absent |= peers.missing(device)
        for family in ("kl", "triplet", "attack", "images", "segments", "relations"):
            absent |= contest.missing(family, device)
    for name, reason in absent.items():
        terminalreporter.write_line(f"{name}: {reason}")
