"""The backends that a test runs on, and the named skips of those that cannot run here.

`pytest` runs every backend that this process has. Triton without a GPU needs its interpreter, which is chosen before
triton is imported, hence a second run: `TRITON_INTERPRET=1 pytest --backend triton`.
"""

from __future__ import annotations

import pytest
import torch

from amkd_fast import backends

if backends.EMULATED:
    from tests.emulator.load import load

    load()


def pytest_addoption(parser):
    parser.addoption("--backend", choices=backends.BACKENDS, help="run only the tests of one backend")


def pytest_generate_tests(metafunc):
    if "backend" not in metafunc.fixturenames:
        return
    only = metafunc.config.getoption("--backend")
    names = [name for name in backends.BACKENDS if only in (None, name)]
    metafunc.parametrize("backend", names, indirect=True)


def pytest_collection_modifyitems(config, items):
    only = config.getoption("--backend")
    if only is None:
        return
    chosen = [item for item in items if "backend" in getattr(item, "fixturenames", ())]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


@pytest.fixture
def backend(request):
    """Run the test's calls on one backend, or skip it with the reason that this machine gives."""
    name, op = request.param, getattr(request.module, "OPERATION", "kl")
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
