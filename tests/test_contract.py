"""What every operation must pass, on every backend that runs here, made from the table in `cases`."""

from __future__ import annotations

import math
from contextlib import contextmanager
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from cases import OPERATIONS
from cases.operation import Operation, Plan, grown, guarded, moved, relative_error, wide
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from traps import NothingWaits

from amkd_fast import backends

# What depends on the kernels' own code, and so is all that runs in Triton's interpreter: `-m kernels`.
kernels = pytest.mark.kernels
by_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=str)
by_gradient = pytest.mark.parametrize("operation", [o for o in OPERATIONS if o.gradients], ids=str)
by_row = pytest.mark.parametrize("operation", [o for o in OPERATIONS if o.rows is not None], ids=str)


def plans_of(operation: Operation, backend: str = "") -> tuple[Plan, ...]:
    if backend == "reference":  # which takes one way at any size: few plans
        return operation.plans[:2]
    return operation.interpreted if backends.INTERPRETING else operation.plans


def on(device, operation: Operation, plan: Plan, dtype=None, **more):
    dtype = dtype or (plan.dtypes or (torch.float32,))[0]
    return moved(operation.draw(plan.shape, dtype, **more), device)


def assert_equal(found, expected, because: str = "") -> None:
    """Bit for bit, NaN for NaN."""
    for a, b in zip((*found.outputs, *found.gradients.values()), (*expected.outputs, *expected.gradients.values()),
                    strict=True):  # fmt: skip
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True, msg=because or None)


# ---- values ---------------------------------------------------------------------------------------------------------


def values():
    """Every plan in fp32 and every dtype; the interpreter takes one plan alone in the other dtypes."""
    for operation in OPERATIONS:
        for i, plan in enumerate(plans_of(operation)):
            dtypes = plan.dtypes or operation.dtypes
            for dtype in dtypes:
                if i == 0 or not backends.INTERPRETING or dtype == dtypes[0]:
                    yield pytest.param(operation, plan, dtype, i, id=f"{operation}-{plan.name}-{str(dtype)[6:]}")


@kernels
@pytest.mark.parametrize(("operation", "plan", "dtype", "number"), list(values()))
def test_value_and_gradient(backend, device, operation, plan, dtype, number):
    """Against fp64, with memory around the inputs that nobody may read; the outputs' dtypes; which backend ran."""
    drawn = operation.make(plan, dtype)
    pad = 3 * (number % 2)
    given = {n: guarded(x.to(device), pad if n in operation.strided else 0, plan.offset) for n, x in drawn.items()}
    with fresh_memory_poisoned(backends.INTERPRETING):
        found = operation.run(given, plan.options)
    assert backends.last(operation.family) == backend
    assert all(g.dtype == drawn[n].dtype and g.shape == drawn[n].shape for n, g in found.gradients.items())
    if operation.compare is not None:
        operation.compare(operation, plan, found, drawn)
        return
    if operation.exact:
        assert_equal(moved_result(found), operation.expected(drawn, plan.options))
        return
    errors = [as_precise(operation, plan, dtype, found, drawn)]
    # One number may be right by luck, ours or eager's: a result of few is judged over several draws.
    fewest = min((x.numel() for x in found.outputs), default=64)
    draws = min(operation.draws, -(-64 // max(fewest, 1)))
    for seed in range(1, draws):
        drawn = operation.make(plan, dtype, seed)
        errors.append(as_precise(operation, plan, dtype, operation.run(moved(drawn, device), plan.options), drawn))
    for name, *pairs in zip(errors[0], *(e.values() for e in errors), strict=True):
        ours, eager = (math.hypot(*column) / math.sqrt(len(pairs)) for column in zip(*pairs, strict=True))
        factor = 3.0 if name.startswith("gradient") else 2.0
        floor = operation.ties if name.startswith("index") else operation.floors.get(dtype, 0.0)
        assert ours <= max(factor * eager, floor), f"{name}: {ours:.2e}, eager {eager:.2e}, of {len(pairs)} draws"


def as_precise(operation: Operation, plan: Plan, dtype, found, drawn) -> dict[str, tuple[float, float]]:
    """The errors of every output and gradient, and those that eager PyTorch makes in the same dtype."""
    eager, exact = operation.expected(drawn, plan.options), operation.expected(wide(drawn), plan.options)
    assert len(found.outputs) == len(exact.outputs)
    assert all(x.dtype == torch.promote_types(dtype, torch.float32) for x in found.outputs if x.is_floating_point())
    kinds = ["output" if x.is_floating_point() else "index" for x in found.outputs]
    names = [f"{kind} {i}" for i, kind in enumerate(kinds)]
    is_settled = dtype == torch.float64 or not operation.rounding_selects
    names += [f"gradient of {n}" for n in found.gradients if is_settled]
    columns = ((*f.outputs, *(f.gradients.values() if is_settled else ())) for f in (found, eager, exact))
    error = relative_error if is_settled else all_but_the_worst
    return {n: (error(a, c), error(b, c)) for n, a, b, c in zip(names, *columns, strict=True)}


def all_but_the_worst(value, truth) -> float:
    """The error without the worst rows, one of a hundred: there the rounding took a pair over a bound."""
    apart = (value.detach().double().cpu() - truth.double()).abs().flatten()
    kept = apart.argsort()[: max(len(apart) - math.ceil(len(apart) / 100), 1)] if len(apart) > 1 else slice(None)
    return relative_error(value.cpu().flatten()[kept], truth.flatten()[kept])


def moved_result(found):
    return type(found)(tuple(x.cpu() for x in found.outputs), {n: g.cpu() for n, g in found.gradients.items()})


@by_gradient
def test_gradcheck(backend, device, operation):
    """Of all that has a gradient, in both passes."""
    small = operation.small
    drawn = on(device, operation, small, torch.float64)
    names = [n for n in (*operation.gradients, *operation.others) if n in drawn]
    rest = {n: x for n, x in drawn.items() if n not in names}
    leaves = [drawn[n].requires_grad_() for n in names]

    def function(*leaves):
        outputs = operation.call(
            **dict(zip(names, leaves, strict=True)), **rest, **{**operation.options, **small.options}
        )
        return outputs if isinstance(outputs, torch.Tensor) else tuple(x for x in outputs if x.requires_grad)

    fast = backends.INTERPRETING
    assert torch.autograd.gradcheck(function, leaves, fast_mode=fast)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@by_gradient
def test_each_gradient_alone(backend, device, operation):
    """Whichever tensors have gradients, they are the same."""
    drawn = on(device, operation, operation.small, torch.float64)
    names = [n for n in (*operation.gradients, *operation.others) if n in drawn]
    with backends.backend("reference"):
        exact = operation.run(drawn, operation.small.options, needed=tuple(names))
    for chosen in (*((n,) for n in names), tuple(names)):
        found = operation.run(drawn, operation.small.options, needed=chosen)
        for name in chosen:
            torch.testing.assert_close(found.gradients[name], exact.gradients[name], rtol=1e-9, atol=1e-13)


# ---- layouts, dtypes, sizes -----------------------------------------------------------------------------------------

LAYOUTS = {
    "transposed": lambda x: x.mT.contiguous().mT,
    "sliced": lambda x: F.pad(x, (3, 2))[..., 3:-2],
    "every other": lambda x: x.repeat_interleave(2, dim=-1)[..., ::2],
    "expanded": lambda x: x[:1].expand(x.shape),
    "shifted": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x,
    "one of them": None,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("operation", [o for o in OPERATIONS if o.strided], ids=str)
def test_any_strides(backend, device, operation, layout):
    drawn, options = on(device, operation, operation.small), operation.small.options
    names = [n for n in operation.strided if n in drawn and drawn[n].dim() > 1]
    make = LAYOUTS[layout] or LAYOUTS["transposed"]
    strided = drawn | {n: make(drawn[n]) for n in (names if LAYOUTS[layout] else names[-1:])}
    dense = {n: x.contiguous() for n, x in strided.items()}
    # A copy of a layout of its own may change the order of a sum.
    for found, expected in ((operation.run(strided, options), operation.run(dense, options)),):
        pairs = zip((*found.outputs, *found.gradients.values()), (*expected.outputs, *expected.gradients.values()),
                    strict=True)  # fmt: skip
        for a, b in pairs:
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@kernels
@pytest.mark.parametrize("operation", [o for o in OPERATIONS if o.strided], ids=str)
def test_rows_far_apart(backend, device, operation):
    """Rows that begin beyond 2³¹ elements: nobody touches the memory between them, so that it is not really there."""
    if backends.EMULATED == "asan":
        pytest.skip("an eighth of it would be there")
    dtype = next(d for d in (torch.bfloat16, torch.float32) if d in operation.dtypes)
    drawn, options = on(device, operation, operation.small, dtype), operation.small.options
    apart = drawn | {n: far_apart(drawn[n]) for n in operation.strided if n in drawn and drawn[n].dim() > 1}
    found, expected = operation.run(apart, options), operation.run(drawn, options)
    for a, b in zip((*found.outputs, *found.gradients.values()), (*expected.outputs, *expected.gradients.values()),
                    strict=True):  # fmt: skip
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def far_apart(x):
    """The same values, the last row of them 2³¹ elements behind the first."""
    rows = x.flatten(1)
    stride = -(-(1 << 31) // max(len(rows) - 1, 1)) // 64 * 64 + 64
    home = torch.empty((len(rows) - 1) * stride + rows.shape[1], dtype=x.dtype, device=x.device)
    return home.as_strided(x.shape, (stride, *x.stride()[1:])).copy_(x)


@by_gradient
def test_mixed_dtypes_meet_in_the_common_one(backend, device, operation):
    drawn, options = on(device, operation, operation.small, torch.bfloat16), operation.small.options
    drawn = {
        n: x if n in operation.strided[:1] else x.float() if x.is_floating_point() else x for n, x in drawn.items()
    }
    found = operation.run(drawn, options)
    full = operation.run({n: x.float() if x.is_floating_point() else x for n, x in drawn.items()}, options)
    for name, gradient in found.gradients.items():
        assert gradient.dtype == drawn[name].dtype
    for a, b in zip(found.outputs, full.outputs, strict=True):
        torch.testing.assert_close(a, b)


@kernels
@pytest.mark.parametrize(
    ("operation", "shape"),
    [pytest.param(o, shape, id=f"{o}-{shape}") for o in OPERATIONS for shape in o.empty],
)
def test_nothing(backend, device, operation, shape):
    """Without rows or elements: results of the right shapes, finite where there are any, gradients of zeros."""
    drawn = moved(operation.draw(shape, torch.float32), device)
    found = operation.run(drawn, operation.small.options)
    expected = operation.expected(drawn, operation.small.options)
    for a, b in zip(found.outputs, expected.outputs, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        if operation.gradients:
            assert not a.any()
    for name, gradient in found.gradients.items():
        assert gradient.shape == drawn[name].shape
        assert not gradient.any()


# ---- memory, repetition, threads ------------------------------------------------------------------------------------


@by_operation
def test_every_element_of_the_outputs_is_written(backend, device, operation):
    """Fresh memory holds NaN, or the largest integer, under deterministic algorithms."""
    with fresh_memory_poisoned():
        assert torch.empty_strided((4,), (1,), device=device).isnan().all()
        for plan in plans_of(operation, backend):
            found = operation.run(on(device, operation, plan), plan.options)
            for x in (*found.outputs, *found.gradients.values()):
                least = torch.iinfo(x.dtype).max if x.dtype in (torch.int64, torch.int32) else None
                assert (x != least).all() if least else torch.isfinite(x).all()
            if operation.exact:  # no byte says that nobody has written it
                drawn = operation.make(plan)
                assert_equal(moved_result(found), operation.expected(drawn, plan.options))


@contextmanager
def fresh_memory_poisoned(really: bool = True):
    """New tensors hold NaN, or the largest integer, as they do under deterministic algorithms."""
    torch.use_deterministic_algorithms(really)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@by_operation
def test_inputs_stay_as_they_are(backend, device, operation):
    drawn = on(device, operation, operation.small)
    before = {n: x.clone() for n, x in drawn.items()}
    operation.run(drawn, operation.small.options)
    for name, x in before.items():
        torch.testing.assert_close(drawn[name], x, rtol=0, atol=0, equal_nan=True)


@by_operation
def test_same_bits_on_a_second_run_and_on_other_threads(backend, device, operation):
    threads = torch.get_num_threads()
    for plan in plans_of(operation, backend):
        drawn = on(device, operation, plan)
        runs = []
        torch.use_deterministic_algorithms(operation.atomics)
        try:
            for count in (3, 3, 1, 2)[: 4 if backend == "cpu" else 2]:  # torch's own sums depend on the threads
                torch.set_num_threads(count)
                runs.append(operation.run(drawn, plan.options))
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(False)
        for run in runs[1:]:
            assert_equal(run, runs[0], plan.name)


@by_gradient
def test_a_graph_serves_twice(backend, device, operation):
    """The same bits again, and a multiple of the upstream gradient gives that of the gradient."""
    drawn = on(device, operation, operation.small)
    leaves = [drawn[n].requires_grad_() for n in operation.gradients if n in drawn]
    output = next(x for x in _outputs(operation, drawn) if x.requires_grad)
    one = torch.ones_like(output)
    first, again, thrice = (
        torch.autograd.grad(output, leaves, upstream, retain_graph=True) for upstream in (one, one, 3.0 * one)
    )
    for a, b, c in zip(first, again, thrice, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(c, 3.0 * a, rtol=1e-5, atol=1e-8)


def _outputs(operation: Operation, tensors) -> tuple:
    outputs = operation.call(**tensors, **{**operation.options, **operation.small.options})
    return (outputs,) if isinstance(outputs, torch.Tensor) else tuple(outputs)


@pytest.mark.parametrize("operation", [o for o in OPERATIONS if o.saves is not None], ids=str)
def test_inputs_are_saved_and_little_more(backend, device, operation):
    if backend == "reference":
        pytest.skip("the reference is plain autograd")
    drawn = on(device, operation, Plan("", (64, 50)))
    for name in operation.gradients:
        drawn[name].requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        _outputs(operation, drawn)
    inputs = {x.data_ptr() for x in drawn.values()}
    assert {drawn[n].data_ptr() for n in operation.gradients} <= {x.data_ptr() for x in saved}
    assert sum(x.numel() for x in saved if x.data_ptr() not in inputs) <= operation.saves * 64


# ---- rows that are no numbers ---------------------------------------------------------------------------------------


@kernels
@by_row
@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
@pytest.mark.parametrize("classes", [9, 3000])
def test_bad_logit_poisons_its_row_alone(backend, device, operation, value, classes):
    options = {**operation.small.options, **operation.rows}
    plan = Plan("", (5, 300 if backends.INTERPRETING else classes))
    drawn = on(device, operation, plan)
    clean = operation.run(drawn, options)
    others = [0, 1, 3, 4]
    for name in operation.strided:
        bad = drawn | {name: drawn[name].clone()}
        bad[name][2, plan.shape[1] // 2] = value
        found = operation.run(bad, options)
        for a, b in zip(found.outputs, clean.outputs, strict=True):
            assert a[2].isnan()
            assert torch.equal(a[others], b[others])
        for a, b in zip(found.gradients.values(), clean.gradients.values(), strict=True):
            assert a[2].isnan().any()
            assert torch.equal(a[others], b[others])


@kernels
@pytest.mark.parametrize("operation", [o for o in OPERATIONS if o.masks], ids=str)
@pytest.mark.parametrize("classes", [7, 100, 5000])
def test_masked_classes_are_as_if_absent(backend, device, operation, classes):
    if backends.INTERPRETING and classes == 5000:
        classes = 1500
    drawn = on(device, operation, Plan("", (4, classes)))
    kept = torch.arange(classes, device=device) % 3 != 1
    narrow = drawn | {n: drawn[n][:, kept] for n in operation.strided}
    masked = drawn | {n: drawn[n].masked_fill(~kept, -math.inf) for n in operation.strided}
    if "labels" in drawn:  # among the classes that are kept
        narrow["labels"] = torch.arange(4, device=device)
        masked["labels"] = kept.nonzero()[narrow["labels"], 0]
    options = {**operation.small.options, **(operation.rows or {})}
    found, expected = operation.run(masked, options), operation.run(narrow, options)
    for a, b in zip(found.outputs, expected.outputs, strict=True):
        if b.shape == () or not operation.rows or a.shape == (4,):
            torch.testing.assert_close(a.nan_to_num(7.0), b.nan_to_num(7.0), rtol=2e-6, atol=1e-6)
    for a, b in zip(found.gradients.values(), expected.gradients.values(), strict=True):
        torch.testing.assert_close(a[:, kept], b, rtol=1e-5, atol=1e-7)
        assert (a[:, ~kept] == 0).all()


# ---- torch's own machinery ------------------------------------------------------------------------------------------


@by_operation
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_changes_nothing(backend, device, operation, dtype):
    """Whatever the dtype of the logits that a network under autocast makes, the loss is what it is without."""
    if dtype not in operation.dtypes:
        pytest.skip("no such input")
    drawn, options = on(device, operation, operation.small, dtype), operation.small.options
    expected = operation.run(drawn, options)
    for narrow in (torch.bfloat16, torch.float16):

        def call(narrow=narrow, **given):
            with torch.autocast(device.type, dtype=narrow):
                return operation.call(**given)

        assert_equal(operation.run(drawn, options, call=call), expected)


by_patience = pytest.mark.parametrize("operation", [o for o in OPERATIONS if not o.waits], ids=str)


@by_patience
def test_compiled_once_for_all_sizes(backend, device, operation):
    """Twenty batch sizes under torch.compile(dynamic=True) are one graph; a factor 1/B among the numbers of a call made
    them twenty, of which torch gives up after eight."""
    torch._dynamo.reset()
    counters.clear()
    options = {**operation.options, **operation.small.options}
    how = "eager" if backend == "reference" else "aot_eager"
    operation.run({k: x.to(device) for k, x in operation.make(operation.small).items()}, options)  # loads the backend
    call = partial(operation.call, **options)
    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend=how)

    def results(function):
        def of_what_was_drawn(**given):
            return function(**{k: given[k] for k in drawn})

        found = operation.run({k: x.to(device) for k, x in drawn.items()}, call=of_what_was_drawn)
        return *found.outputs, *found.gradients.values()

    with torch.fx.experimental._config.patch(use_duck_shape=False):  # else sizes that are equal once are taken for one
        for n in range(12, 52, 2):  # some operations draw no weights for odd sizes
            drawn = operation.draw(grown(operation.small.shape, n), torch.float32)
            found = results(compiled)
    for a, b in zip(found, results(call), strict=True):
        torch.testing.assert_close(a, b)
    assert counters["stats"]["unique_graphs"] == 1


class Recorder(TorchDispatchMode):
    """Writes down the calls of the project's operators, with their arguments as they were before the call."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "amkd_fast":
            self.calls.append((function, torch.utils._pytree.tree_map_only(torch.Tensor, torch.Tensor.clone, args)))
        return function(*args, **(kwargs or {}))


@kernels
@by_operation
def test_operators_keep_the_rules_of_torch(backend, device, operation):
    """Every operator that an operation calls: its schema, and its fake against the real one."""
    if backend == "reference":
        pytest.skip("the reference has no operators")
    with Recorder() as recorder:
        for plan in {
            plan.options.get("reduction"): plan for plan in (operation.small, *plans_of(operation)[:2])
        }.values():
            operation.run(on(device, operation, plan), plan.options)
    assert recorder.calls
    seen = {}
    for function, args in recorder.calls:
        seen.setdefault((function, tuple(type(a) for a in args)), args)
    for (function, _), args in seen.items():
        torch.library.opcheck(function, args, test_utils=("test_schema", "test_faketensor"))


@by_patience
def test_nothing_waits_for_the_device(backend, device, operation):
    if backend == "reference" and operation.family == "kl":
        pytest.skip("the reference looks at labels")
    if backend in operation.looks and device.type == "cpu":
        pytest.skip(f"backend {backend} looks at values on a CPU")
    drawn, options = on(device, operation, operation.small), operation.small.options
    operation.run(drawn, options)
    with NothingWaits():
        operation.run(drawn, options)


# ---- modules, refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", [o for o in OPERATIONS if o.module], ids=str)
def test_module_is_the_function(backend, device, operation):
    drawn, options = on(device, operation, operation.small), {**operation.options, **operation.small.options}
    found = operation.module(drawn, dict(options))
    expected = operation.call(**drawn, **options)
    for a, b in zip(*((x,) if isinstance(x, torch.Tensor) else tuple(x) for x in (found, expected)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("refusal", [pytest.param(r, id=f"{o}-{r.message}") for o in OPERATIONS for r in o.refusals])
def test_bad_input_is_refused_by_name(refusal):
    with pytest.raises(refusal.error) as caught:
        refusal.call()
    assert str(caught.value).startswith(refusal.message)
