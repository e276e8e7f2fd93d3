"""The backends that a test runs on, and the named skips of those that cannot run here.

`pytest` runs every backend that this process has. Triton without a GPU needs its interpreter, which is chosen before
triton is imported, hence a second run: `TRITON_INTERPRET=1 pytest --backend triton`.
"""

from __future__ import annotations

import signal

import pytest
import torch

from amkd_fast import backends

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background, and so in all that tests start
    signal.signal(signal.SIGINT, signal.default_int_handler)
if backends.EMULATED:
    from tests.emulator.load import load

    load()
if backends.INTERPRETING:
    from tests.interpreter import check

    check()


def pytest_addoption(parser):
    parser.addoption("--backend", choices=backends.BACKENDS, help="run only the tests of one backend")


def pytest_generate_tests(metafunc):
    if "backend" not in metafunc.fixturenames:
        return
    only = metafunc.config.getoption("--backend")
    names = [only] if only else [name for name in backends.BACKENDS if name not in missing()]
    metafunc.parametrize("backend", names, indirect=True)


def missing() -> dict[str, str]:
    """The backends that run no operation here, with their reasons."""
    reasons = {name: {of[name] for of in backends.available().values()} for name in backends.BACKENDS}
    return {name: "; ".join(sorted(found)) for name, found in reasons.items() if "" not in found}


def pytest_report_header(config):
    return [f"not run here: backend {name}, {reason}" for name, reason in missing().items()]


def pytest_collection_modifyitems(config, items):
    left = [item for item in items if not wanted(item, config.getoption("--backend"))]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item not in set(left)]


def wanted(item, only: str | None) -> bool:
    """With `--backend` alone what uses one; and of the reference, which takes one way at any size, few plans."""
    parameters = (getattr(item, "callspec", None) and item.callspec.params) or {}
    if parameters.get("backend") == "reference" and parameters.get("number", 0) > 1:
        return False
    return only is None or "backend" in getattr(item, "fixturenames", ())


@pytest.fixture
def backend(request):
    """Run the test's calls on one backend, or skip it with the reason that this machine gives."""
    operation = request.node.callspec.params.get("operation")
    name, op = request.param, getattr(operation, "family", None) or getattr(request.module, "OPERATION", "kl")
    reason = backends.available()[op][name]
    if reason:
        pytest.skip(f"backend {name}: {reason}")
    with backends.backend(name):
        yield name


@pytest.fixture
def device(backend):
    """Where the tensors of a backend live: a GPU where the backend needs one, or where there is one."""
    if backend == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda")


@pytest.fixture
def one_thread():
    """Networks this small are slower on several threads, and beside other tests much slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
