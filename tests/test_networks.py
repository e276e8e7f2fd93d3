"""Networks by name: what the papers say of them, what a seed settles, and what a user's own name may do wrong."""

from __future__ import annotations

import doctest
import importlib
import os
import pkgutil
import subprocess
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from amkd_fast.attacks import frozen
from amkd_fast.attacks.folding import FoldedNetwork
from amkd_fast.attacks.guards import Guards
from amkd_fast.distill import networks
from amkd_fast.distill.errors import UserError
from amkd_fast.distill.networks import Spec, build, check, is_users, names
from amkd_fast.distill.networks.cifar_resnet import DEPTHS, Block, CifarResNet
from amkd_fast.distill.networks.wide_resnet import WideResNet

OWN = ("resnet8", "resnet26", "wrn-10-1", "wrn-16-2", "small-4-1")
FACTORY = """
import torch
from torch import nn

def make(*, channels, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * 64, classes))

def number(*, channels, classes):
    return classes

def broken(*, channels, classes):
    raise ZeroDivisionError("first line\\n  second line")

def leaves(*, channels, classes):
    raise SystemExit(3)

def positional(channels):
    return nn.Linear(1, 1)

size = 7
torch.rand(1)
"""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, from which modules can be imported only for the length of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("mine"):
            del sys.modules[name]


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def count(name, classes):
    """Parameters of the network of this name for RGB images, without memory for them."""
    with torch.device("meta"):
        return parameters(names.find(name, "")(channels=3, classes=classes))


def cifar_resnet_parameters(depth, classes):
    """Option A: the 3x3 convolutions, two numbers per channel for the BatchNorm behind each, and the linear layer."""
    n = (depth - 2) // 6
    shapes = [(3, 16), *[(16, 16)] * (2 * n), (16, 32), *[(32, 32)] * (2 * n - 1), (32, 64), *[(64, 64)] * (2 * n - 1)]
    assert len(shapes) == depth - 1
    return sum(9 * i * o + 2 * o for i, o in shapes) + 65 * classes


def wide_resnet_parameters(depth, k, classes):
    """Convolutions with the BatchNorm before each, 1x1 shortcuts into each stage, the last BatchNorm, the head."""
    n = (depth - 4) // 6
    total = 3 * 16 * 9
    for i, o in ((16, 16 * k), (16 * k, 32 * k), (32 * k, 64 * k)):
        total += 2 * i + 9 * i * o + (2 * n - 1) * (2 * o + 9 * o * o) + (i * o if i != o else 0)
    return total + 2 * 64 * k + 64 * k * classes + classes


def scrambled(name):
    """A network in eval mode whose BatchNorms are no identities."""
    network = build(Spec(name, 3, 10), 0)
    draws = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value, lowest in ((module.weight, 0.5), (module.bias, -0.5), (module.running_mean, -0.5)):
                value.data.copy_(torch.rand(value.shape, generator=draws) + lowest)
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=draws) + 0.5)
    return network.eval()


def images(size=8, channels=3, batch=2):
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(0))


# --- sizes


@pytest.mark.parametrize("depth", DEPTHS)
def test_parameters_of_cifar_resnets(depth):
    for classes in (10, 100):
        assert count(f"resnet{depth}", classes) == cifar_resnet_parameters(depth, classes)


@pytest.mark.parametrize(
    ("name", "millions"),  # He et al. 2016, table 6; Zagoruyko & Komodakis 2016, tables 4 and 5
    [
        *(("resnet20", 0.27), ("resnet32", 0.46), ("resnet44", 0.66), ("resnet56", 0.85), ("resnet110", 1.7)),
        *(("wrn-40-1", 0.6), ("wrn-40-2", 2.2), ("wrn-40-4", 8.9), ("wrn-16-8", 11.0), ("wrn-28-10", 36.5)),
    ],
)
def test_parameters_are_the_published_ones(name, millions):
    digits = len(str(millions).split(".")[1])
    assert count(name, 10) / 1e6 == pytest.approx(millions, abs=0.51 * 10**-digits)


def test_exact_parameters():
    assert [count(name, 10) for name in ("resnet8", "resnet20", "resnet56")] == [75290, 269722, 853018]
    assert [count(name, 10) for name in ("wrn-16-2", "wrn-28-10")] == [691674, 36479194]
    assert count("wrn-40-2", 100) == 2255156


@pytest.mark.parametrize(("depth", "k"), [(10, 1), (16, 1), (16, 2), (22, 3), (28, 10), (40, 2)])
def test_parameters_of_wide_resnets(depth, k):
    for classes in (10, 100):
        assert count(f"wrn-{depth}-{k}", classes) == wide_resnet_parameters(depth, k, classes)


def test_layers_are_as_many_as_the_names_say():
    for depth in DEPTHS:
        network = CifarResNet(depth=depth, channels=1, classes=2)
        assert sum(isinstance(m, nn.Conv2d) for m in network.modules()) + 1 == depth
    for depth in (10, 16, 40):
        network = WideResNet(depth=depth, width=2, channels=1, classes=2)
        assert sum(isinstance(m, nn.Conv2d) for m in network.modules()) == depth


@pytest.mark.parametrize("name", OWN)
def test_shapes(name):
    network = build(Spec(name, 3, 7), 0).eval()
    assert isinstance(network.head, nn.Linear)
    for size in (8, 9, 32, 64):
        x = images(size)
        embedding = network.embed(x)
        assert embedding.shape == (2, network.head.in_features)
        assert torch.equal(network.head(embedding), network(x))
        assert network(x).shape == (2, 7)
    assert build(Spec(name, 1, 2), 0)(images(8, 1)).shape == (2, 2)


# --- definitions


def test_option_a_is_the_strided_input_and_zeros():
    x = images(9)[:, :2]
    shortcut = Block(2, 5, 2).shortcut(x)
    assert shortcut.shape == (2, 5, 5, 5)
    assert torch.equal(shortcut[:, :2], x[:, :, ::2, ::2])
    assert not shortcut[:, 2:].any()
    assert Block(2, 2, 1).shortcut(x) is x


def test_option_a_has_no_parameters_and_passes_gradients():
    block = Block(2, 4, 2)
    assert {name.split(".")[0] for name, _ in block.named_parameters()} == {"conv1", "bn1", "conv2", "bn2"}
    x = images(8)[:, :2].requires_grad_()
    block.shortcut(x).sum().backward()
    assert torch.equal(x.grad.nonzero(), torch.ones(2, 2, 8, 8)[:, :, ::2, ::2].nonzero() * torch.tensor([1, 1, 2, 2]))


def bn(x, state, name):
    keys = ("running_mean", "running_var", "weight", "bias")
    return F.batch_norm(x, *(state[f"{name}.{key}"] for key in keys))


def test_cifar_resnet_by_hand():
    network = scrambled("resnet8")
    state = network.state_dict()
    y = F.relu(bn(F.conv2d(images(), state["conv.weight"], padding=1), state, "bn"))
    for i, stride in enumerate((1, 2, 2)):
        z = F.conv2d(y, state[f"stages.{i}.conv1.weight"], stride=stride, padding=1)
        z = F.conv2d(F.relu(bn(z, state, f"stages.{i}.bn1")), state[f"stages.{i}.conv2.weight"], padding=1)
        z = bn(z, state, f"stages.{i}.bn2")
        z[:, : y.shape[1]] += y[:, :, ::stride, ::stride]
        y = F.relu(z)
    want = F.linear(y.mean((2, 3)), state["head.weight"], state["head.bias"])
    torch.testing.assert_close(network(images()), want)


def test_wide_resnet_by_hand():
    network = scrambled("wrn-16-2")
    state = network.state_dict()
    y = F.conv2d(images(), state["conv.weight"], padding=1)
    for i, stride in enumerate((1, 1, 2, 1, 2, 1)):
        at = f"stages.{i}"
        a = F.relu(bn(y, state, f"{at}.bn1"))
        z = F.relu(bn(F.conv2d(a, state[f"{at}.conv1.weight"], stride=stride, padding=1), state, f"{at}.bn2"))
        z = F.conv2d(z, state[f"{at}.conv2.weight"], padding=1)
        y = z + (F.conv2d(a, state[f"{at}.shortcut.weight"], stride=stride) if i % 2 == 0 else y)
    y = F.relu(bn(y, state, "bn")).mean((2, 3))
    torch.testing.assert_close(network(images()), F.linear(y, state["head.weight"], state["head.bias"]))


def test_small_resnets_are_what_they_were():
    """Taken from ``networks.build(5, width=…, blocks=…)`` of the module that this package replaced."""
    rows = (
        ("small-4-1", 1, 10, 5142, 650.8512164836211, (-0.1127263755, -0.1328609437, 0.3130664825)),
        ("small-16-2", 3, 100, 181108, 10487.224579050027, (-0.2597137988, 0.7823441029, 0.0586923957)),
        ("small-2-1", 1, 10, 1384, 250.4025815413188, (-0.0882853493, 0.3492506146, -0.2680392563)),
    )
    for name, channels, classes, size, total, logits in rows:
        network = build(Spec(name, channels, classes), 5).eval()
        assert parameters(network) == size
        assert sum(p.detach().double().abs().sum().item() for p in network.parameters()) == pytest.approx(
            total, rel=1e-7
        )
        x = torch.linspace(-1, 1, 2 * channels * 64).view(2, channels, 8, 8)
        torch.testing.assert_close(network(x)[0, :3], torch.tensor(logits), rtol=1e-4, atol=1e-5)
    keys = list(build(Spec("small-4-1", 1, 10), 5).state_dict())
    assert keys[:3] == ["conv.weight", "bn.weight", "bn.bias"]
    assert keys[-4:] == [
        *("stages.2.shortcut.1.running_var", "stages.2.shortcut.1.num_batches_tracked", "head.weight", "head.bias")
    ]


@pytest.mark.parametrize("name", ["resnet20", "wrn-16-2", "small-16-2"])
def test_convolutions_start_as_he_et_al_say(name):
    for module in build(Spec(name, 3, 10), 0).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)


# --- seeds


@pytest.mark.parametrize("name", OWN)
def test_initial_weights_depend_on_the_seed_alone(name):
    spec = Spec(name, 1, 10)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    one, other = build(spec, 5).state_dict(), build(spec, 6).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    with torch.device("meta"):
        again = build(spec, 5)
    assert again.training
    assert all(torch.equal(value, one[key]) for key, value in again.state_dict().items())
    assert not torch.equal(one["head.weight"], other["head.weight"])
    assert not torch.equal(one["conv.weight"], other["conv.weight"])


@pytest.mark.parametrize(("channels", "classes", "argument"), [(0, 10, "channels"), (3, -1, "classes")])
def test_sizes_that_make_no_network(channels, classes, argument):
    with pytest.raises(ValueError, match=rf"{argument}=.*above 0"):
        build(Spec("resnet8", channels, classes), 0)


def test_classes_check_their_own_sizes():
    with pytest.raises(ValueError, match="depth=18: must be one of 8, 14"):
        CifarResNet(depth=18, channels=3, classes=10)
    with pytest.raises(ValueError, match="depth=17: must be 6n"):
        WideResNet(depth=17, width=1, channels=3, classes=10)
    with pytest.raises(ValueError, match="width="):
        WideResNet(depth=16, width=0, channels=3, classes=10)


# --- training and attacks


@pytest.mark.parametrize("name", OWN)
def test_gradients_reach_everything(name):
    network = build(Spec(name, 3, 10), 0)
    x = images(8, batch=4).requires_grad_()
    for loss in (lambda y: F.cross_entropy(y, torch.arange(4)), lambda y: y.square().sum()):
        network.zero_grad()
        with torch.autograd.set_detect_anomaly(True):
            loss(network(x)).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in network.parameters())
    assert x.grad.any()


@pytest.mark.parametrize("name", ["resnet8", "wrn-10-1", "wrn-10-2"])
def test_gradients_against_differences(name):
    network = scrambled(name).double()
    x = images(8, batch=1).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: network(x).logsumexp(1), (x,), fast_mode=True)


def left_unfolded(network):
    folded = FoldedNetwork(network, Guards(network))._network
    called = {node.target for node in folded.graph.nodes if node.op == "call_module"}
    return [name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d) and name in called]


@pytest.mark.parametrize("name", [*OWN, "wrn-10-2"])
def test_the_folded_view_computes_the_same(name):
    network = scrambled(name)
    view = frozen(network)
    for size in (8, 32):
        x, other = images(size).requires_grad_(), images(size).requires_grad_()
        with torch.no_grad():
            network.head.weight.div_(network(x).abs().max())  # logits of size one
            network.head.bias.zero_()
        got, want = view(x), network(other)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
        (got.square().sum() + got.sum()).backward()
        (want.square().sum() + want.sum()).backward()
        torch.testing.assert_close(x.grad, other.grad, rtol=1e-4, atol=1e-4 * other.grad.abs().max().item())
    assert view.folded


@pytest.mark.parametrize("name", ["resnet8", "resnet26", "small-4-1"])
def test_every_batchnorm_behind_a_convolution_folds(name):
    assert left_unfolded(scrambled(name)) == []


# --- memory formats


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OWN)
def test_channels_last_changes_nothing(name, channels):
    passes = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        network = build(Spec(name, channels, 10), 0).double().train()
        given = images(16, channels).double()
        given = torch.empty_like(given, memory_format=memory_format).copy_(given).requires_grad_()
        logits = network(given)
        logits.square().sum().backward()
        found = {key: parameter.grad for key, parameter in network.named_parameters()}
        assert all(grad.is_contiguous() for grad in found.values())  # as the weights are, whatever the images are
        passes.append({**found, **dict(network.named_buffers()), "logits": logits.detach(), "images": given.grad})
    for key, value in passes[0].items():
        torch.testing.assert_close(passes[1][key], value, rtol=1e-9, atol=1e-9, msg=key)


# Gradients of a narrow network's weights; a strided 1x1 convolution would write past oneDNN's buffer: they get wrong,
# threads hang, the heap breaks. In eval mode, as BatchNorm's own sums differ between the formats.
NARROW = """
import torch
from amkd_fast.distill.networks import Spec, build

torch.set_num_threads(2)

def gradients(images):
    network = build(Spec("small-4-1", 3, 10), 0).to(images.dtype).eval()
    network(images).square().mean().backward()
    return [parameter.grad.double() for parameter in network.parameters() if parameter.dim() == 4]

def error(found, exact):
    return max(((one - other).norm() / other.norm()).item() for one, other in zip(found, exact))

for side in (32, 64):
    images = torch.randn(32, 3, side, side, generator=torch.Generator().manual_seed(0))
    exact = gradients(images.double())
    usual, last = error(gradients(images), exact), error(gradients(images.to(memory_format=torch.channels_last)), exact)
    assert last < 3 * usual, (side, last, usual)
print("right")
"""


@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE"])
def test_channels_last_corrupts_no_memory(isa):
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa, "MALLOC_CHECK_": "3"}
    environment["LD_PRELOAD"] = "libc_malloc_debug.so.0"  # of glibc, which looks at MALLOC_CHECK_; elsewhere a warning
    told = subprocess.run([sys.executable, "-c", NARROW], env=environment, capture_output=True, text=True, timeout=250)
    assert (told.returncode, told.stdout) == (0, "right\n"), told.stderr


def test_batchnorms_of_wide_resnets_that_can_fold():
    after_sums = {f"stages.{block}.bn1" for block in range(1, 6)} | {"bn"}
    assert set(left_unfolded(scrambled("wrn-16-2"))) == after_sums
    assert "stages.0.bn1" in left_unfolded(scrambled("wrn-10-1"))  # the stem also goes to a shortcut


# --- names


@pytest.mark.parametrize("name", ["resnet8", "resnet110", "wrn-10-1", "wrn-28-10", "wrn-9994-9999", "small-9999-9999"])
def test_names_that_exist_cost_nothing_to_check(name):
    check(name, "--network")
    assert not is_users(name)


@pytest.mark.parametrize(
    "name",
    [
        *("", "resnet", "resnet17", "resnet020", "resnet8 ", "ResNet8", "resnet-8", "resnet101", "vgg9"),
        *("resnet8b", "resnet-b", "resnet17-b", "resnet8x4-b", "resnet20x4", "vgg8-b", "mobilenetv2-1", "shufflenet"),
        *("wrn", "wrn-16", "wrn-4-2", "wrn-17-2", "wrn-16-0", "wrn-016-2", "wrn-16-2-1", "wrn-16-2.5", "wrn-16-99999"),
        *("small-0-1", "small-4", "small-4-0", "small--4-1", "small-4-1 ", "small-٤-1", "small-10000-1"),
    ],
)
def test_names_that_do_not_exist(name):
    with pytest.raises(UserError) as caught:
        check(name, "--student-network")
    assert str(caught.value).startswith(f"--student-network {name}: must be resnet8, resnet14")
    for rule in ("resnet110", "wrn-D-K with D = 6n + 4", "small-W-B", "module:factory", "timm:NAME"):
        assert rule in str(caught.value)
    with pytest.raises(UserError, match=r"^network "):
        build(Spec(name, 3, 10), 0)


# --- the user's own


def test_a_factory_in_the_current_folder(folder):
    (folder / "mine.py").write_text(FACTORY)
    assert is_users("mine:make")
    torch.manual_seed(0)
    state = torch.get_rng_state()
    spec = Spec("mine:make", 3, 5)
    first = build(spec, 1)  # imports the module, which draws
    check("mine:make", "--network")
    assert first(images()).shape == (2, 5)
    assert torch.equal(first[1].weight, build(spec, 1)[1].weight)
    assert not torch.equal(first[1].weight, build(spec, 2)[1].weight)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_module_in_a_package_that_imports_later(folder):
    (folder / "mine_package").mkdir()
    (folder / "mine_package" / "__init__.py").touch()
    (folder / "mine_package" / "nets.py").write_text(
        "def Net(channels, classes):\n    from mine_helper import make\n    return make(channels, classes)\n"
    )
    (folder / "mine_helper.py").write_text("from torch import nn\ndef make(i, o):\n    return nn.Linear(i, o)\n")
    state = torch.get_rng_state()
    check("mine_package.nets:Net", "--network")
    assert torch.equal(torch.get_rng_state(), state)
    assert build(Spec("mine_package.nets:Net", 2, 3), 0).weight.shape == (3, 2)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mine_absent:make", "there is no module mine_absent"),
        ("mine.nets:make", "there is no module mine.nets"),
        ("mine:absent", "module mine has no absent"),
        ("mine:size", "size is a int: must be a function or class"),
        ("mine_needs:make", "importing mine_needs raised ModuleNotFoundError: No module named 'not_there'"),
        ("mine_typo:make", "importing mine_typo raised SyntaxError: "),
        ("mine_script:make", "importing mine_script raised SystemExit: 1"),
        (":make", "must be module:factory"),
        ("mine:", "must be module:factory"),
        ("mine.py:make:more", "must be module:factory"),
        (".mine:make", "must be module:factory"),
        ("../mine:make", "must be module:factory"),
    ],
)
def test_factories_that_cannot_be_found(folder, name, words):
    (folder / "mine.py").write_text(FACTORY)
    (folder / "mine_needs.py").write_text("import not_there\n")
    (folder / "mine_typo.py").write_text("def make(:\n")
    (folder / "mine_script.py").write_text("raise SystemExit(1)\n")
    for call, who in ((lambda: check(name, "--network"), "--network"), (lambda: build(Spec(name, 3, 5), 0), "network")):
        with pytest.raises(UserError) as caught:
            call()
        assert str(caught.value).startswith(f"{who} {name}: {words}")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("number", "returned a int: must be a torch.nn.Module"),
        ("broken", "raised ZeroDivisionError: first line second line"),
        ("leaves", "raised SystemExit: 3"),
        ("positional", "raised TypeError: positional() got an unexpected keyword argument 'classes'"),
    ],
)
def test_factories_that_do_not_build(folder, name, words):
    (folder / "mine.py").write_text(FACTORY)
    check(f"mine:{name}", "--network")
    state = torch.get_rng_state()
    with pytest.raises(UserError) as caught:
        build(Spec(f"mine:{name}", 3, 5), 0)
    assert str(caught.value) == f"network mine:{name}: {name}(channels=…, classes=…) {words}"
    assert torch.equal(torch.get_rng_state(), state)


# --- timm


@pytest.fixture
def no_torchvision(monkeypatch):
    """None that was put aside either, as it is where this machine's does not match."""
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)


@pytest.mark.usefixtures("no_torchvision")
def test_timm(monkeypatch):
    asked = []

    def create_model(name, **options):
        asked.append((name, options))
        if options["num_classes"] == 13:
            raise RuntimeError("no 13")
        return nn.Sequential(nn.Flatten(), nn.Linear(64 * options["in_chans"], options["num_classes"]))

    fake = types.SimpleNamespace(create_model=create_model, is_model=lambda name: name == "resnet18.some_tag")
    monkeypatch.setitem(sys.modules, "timm", fake)
    assert is_users("timm:resnet18.some_tag")
    check("timm:resnet18.some_tag", "--network")
    assert asked == []
    assert build(Spec("timm:resnet18.some_tag", 3, 5), 0)(images()).shape == (2, 5)
    assert asked == [("resnet18.some_tag", {"pretrained": False, "in_chans": 3, "num_classes": 5})]
    with pytest.raises(UserError, match=r"^--network timm:nothing: timm has no model nothing"):
        check("timm:nothing", "--network")
    with pytest.raises(UserError, match=r"timm\.create_model raised RuntimeError: no 13$"):
        build(Spec("timm:resnet18.some_tag", 3, 13), 0)


@pytest.mark.usefixtures("no_torchvision")
def test_timm_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        UserError,
        match=r"^--network timm:resnet18: timm is not installed: run `pip install timm` with a torchvision",
    ):
        check("timm:resnet18", "--network")


# --- the package


def test_examples_in_the_docstrings():
    modules = [networks.__name__, *(f"{networks.__name__}.{m.name}" for m in pkgutil.iter_modules(networks.__path__))]
    results = {name: doctest.testmod(importlib.import_module(name)) for name in modules}
    assert all(result.failed == 0 for result in results.values())
    assert sum(result.attempted for result in results.values()) >= 15
