"""The networks of RepDistiller and mdistiller: their sizes, the layouts of their files, and what they compute."""

from __future__ import annotations

import copy
import functools
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from amkd_fast.attacks import frozen
from amkd_fast.attacks.folding import FoldedNetwork
from amkd_fast.attacks.guards import Guards
from amkd_fast.distill.errors import UserError
from amkd_fast.distill.networks import Spec, build, check, in_published_layout, names, translated
from amkd_fast.distill.networks.cifar_resnet_b import CifarResNetB
from amkd_fast.distill.networks.imagenet_resnet import Bottleneck, ImageNetResNet
from amkd_fast.distill.networks.mobilenetv2 import MobileNetV2
from amkd_fast.distill.networks.shufflenetv1 import ShuffleNetV1
from amkd_fast.distill.networks.shufflenetv2 import ShuffleNetV2
from amkd_fast.distill.networks.vgg import VGG
from amkd_fast.methods.extended_kd import find_stages

pytestmark = pytest.mark.usefixtures("one_thread")

PARAMETERS = {  # with 100 classes
    **{"resnet8-b": 83_892, "resnet14-b": 181_108, "resnet20-b": 278_324, "resnet32-b": 472_756},
    **{"resnet44-b": 667_188, "resnet56-b": 861_620, "resnet110-b": 1_736_564},
    **{"resnet8x4": 1_233_540, "resnet32x4": 7_433_860, "resnet18": 11_220_132, "resnet50": 23_705_252},
    **{"wrn-16-1": 180_916, "wrn-16-2": 703_284, "wrn-40-1": 569_780, "wrn-40-2": 2_255_156},
    **{"vgg8": 3_965_028, "vgg11": 9_277_284, "vgg13": 9_462_180, "vgg16": 14_774_436, "vgg19": 20_086_692},
    **{"mobilenetv2": 812_836, "shufflenetv1": 949_258, "shufflenetv2": 1_355_528},
}
# One of each kind that is its own, for what costs time.
KINDS = ("resnet14-b", "resnet8x4", "resnet50", "wrn-16-2", "vgg11", "mobilenetv2", "shufflenetv1", "shufflenetv2")


# --- layouts of the files, as rules


def conv(at, i, o, size, groups=1):
    return {f"{at}.weight": (o, i // groups, size, size)}


def bn(at, channels):
    vectors = ("weight", "bias", "running_mean", "running_var")
    return {**{f"{at}.{name}": (channels,) for name in vectors}, f"{at}.num_batches_tracked": ()}


def linear(at, i, o):
    return {f"{at}.weight": (o, i), f"{at}.bias": (o,)}


def stem(channels, size):
    return conv("conv1", 3, channels, size) | bn("bn1", channels)


def resnet(head, shortcut, counts, channels, widths, expansion=1):
    """Of blocks with two 3x3 convolutions, or bottlenecks whose outer convolutions are ``expansion`` times as wide."""
    found = stem(channels, 3)
    for stage, (count, width) in enumerate(zip(counts, widths, strict=True), start=1):
        out = width * expansion
        for block in range(count):
            at = f"layer{stage}.{block}"
            sizes = ((channels, width, 3), (width, width, 3))
            if expansion > 1:
                sizes = ((channels, width, 1), (width, width, 3), (width, out, 1))
            for k, (i, o, size) in enumerate(sizes, start=1):
                found |= conv(f"{at}.conv{k}", i, o, size) | bn(f"{at}.bn{k}", o)
            if block == 0 and (stage > 1 or channels != out):
                found |= conv(f"{at}.{shortcut}.0", channels, out, 1) | bn(f"{at}.{shortcut}.1", out)
            channels = out
    return found | linear(head, channels, 100)


def wide_resnet(depth, k):
    found, channels = stem(16, 3), 16
    for stage, width in enumerate((16 * k, 32 * k, 64 * k), start=1):
        for block in range((depth - 4) // 6):
            at = f"block{stage}.layer.{block}"
            found |= bn(f"{at}.bn1", channels) | conv(f"{at}.conv1", channels, width, 3)
            found |= bn(f"{at}.bn2", width) | conv(f"{at}.conv2", width, width, 3)
            if channels != width:
                found |= conv(f"{at}.convShortcut", channels, width, 1)
            channels = width
    return found | bn("bn1", channels) | linear("fc", channels, 100)  # the last BatchNorm, as the stem has none


def vgg(*counts):
    found, channels = {}, 3
    for stage, (count, width) in enumerate(zip(counts, (64, 128, 256, 512, 512), strict=True)):
        for i in range(count):
            at = f"block{stage}.{3 * i}"
            found |= conv(at, channels, width, 3) | {f"{at}.bias": (width,)} | bn(f"block{stage}.{3 * i + 1}", width)
            channels = width
    return found | linear("classifier", channels, 100)


def mobilenet():
    found, channels = conv("conv1.0", 3, 16, 3) | bn("conv1.1", 16), 16
    rows = ((1, 8, 1), (6, 12, 2), (6, 16, 3), (6, 32, 4), (6, 48, 3), (6, 80, 3), (6, 160, 1))
    for stage, (expansion, width, count) in enumerate(rows):
        for block in range(count):
            at, inner = f"blocks.{stage}.{block}.conv", channels * expansion
            found |= conv(f"{at}.0", channels, inner, 1) | bn(f"{at}.1", inner)
            found |= conv(f"{at}.3", inner, inner, 3, inner) | bn(f"{at}.4", inner)
            found |= conv(f"{at}.6", inner, width, 1) | bn(f"{at}.7", width)
            channels = width
    return found | conv("conv2.0", 160, 1280, 1) | bn("conv2.1", 1280) | linear("classifier.0", 1280, 100)


def shufflenet1():
    found, channels = stem(24, 1), 24
    for stage, (count, width) in enumerate(((4, 240), (8, 480), (4, 960)), start=1):
        for block in range(count):
            at, made = f"layer{stage}.{block}", width - channels if block == 0 else width
            inner = made // 4
            found |= conv(f"{at}.conv1", channels, inner, 1, 1 if channels == 24 else 3) | bn(f"{at}.bn1", inner)
            found |= conv(f"{at}.conv2", inner, inner, 3, inner) | bn(f"{at}.bn2", inner)
            found |= conv(f"{at}.conv3", inner, made, 1, 3) | bn(f"{at}.bn3", made)
            channels = width
    return found | linear("linear", 960, 100)


def shufflenet2():
    found, channels = stem(24, 1), 24
    for stage, (count, width) in enumerate(((4, 116), (8, 232), (4, 464)), start=1):
        half = width // 2
        for block in range(count):
            at, within = f"layer{stage}.{block}", ((half, half, 1), (half, 1, 3), (half, half, 1))
            if block == 0:
                within = ((channels, 1, 3), (half, channels, 1), (half, channels, 1), (half, 1, 3), (half, half, 1))
            for k, (o, i, size) in enumerate(within, start=1):
                found |= conv(f"{at}.conv{k}", i, o, size) | bn(f"{at}.bn{k}", o)
        channels = width
    return found | conv("conv2", 464, 1024, 1) | bn("bn2", 1024) | linear("linear", 1024, 100)


def layout(name):
    """Keys and shapes of a file that RepDistiller or mdistiller writes for this network, with 100 classes."""
    if name.endswith("-b"):
        return resnet("fc", "downsample", [(int(name[6:-2]) - 2) // 6] * 3, 16, (16, 32, 64))
    if name.endswith("x4"):
        return resnet("fc", "downsample", [(int(name[6:-2]) - 2) // 6] * 3, 32, (64, 128, 256))
    if name.startswith("wrn"):
        return wide_resnet(*map(int, name.split("-")[1:]))
    return {
        "resnet18": lambda: resnet("linear", "shortcut", (2, 2, 2, 2), 64, (64, 128, 256, 512)),
        "resnet50": lambda: resnet("linear", "shortcut", (3, 4, 6, 3), 64, (64, 128, 256, 512), expansion=4),
        "vgg8": lambda: vgg(1, 1, 1, 1, 1),
        "vgg11": lambda: vgg(1, 1, 2, 2, 2),
        "vgg13": lambda: vgg(2, 2, 2, 2, 2),
        "vgg16": lambda: vgg(2, 2, 3, 3, 3),
        "vgg19": lambda: vgg(2, 2, 4, 4, 4),
        "mobilenetv2": mobilenet,
        "shufflenetv1": shufflenet1,
        "shufflenetv2": shufflenet2,
    }[name]()


# --- what they compute, from tensors of those names


class ByHand:
    """Forward passes on a state dict of the published layout, in eval mode."""

    def __init__(self, state):
        self.state = state

    def blocks(self, start):
        """Names of the blocks below modules that begin with ``start``, in order, with whether each begins a stage."""
        found = {tuple(key.split(".")[:2]) for key in self.state if key.startswith(start) and key.count(".") > 2}
        for stage, block in sorted(found, key=lambda at: (at[0], int(at[1]))):
            yield f"{stage}.{block}", stage, block == "0"

    def conv(self, x, at, stride=1):
        weight = self.state[f"{at}.weight"]
        return F.conv2d(
            *(x, weight, self.state.get(f"{at}.bias"), stride, weight.shape[-1] // 2, 1),
            x.shape[1] // weight.shape[1],
        )

    def bn(self, x, at):
        return F.batch_norm(x, *(self.state[f"{at}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")))

    def both(self, x, at, k, stride=1):
        return self.bn(self.conv(x, f"{at}conv{k}", stride), f"{at}bn{k}")

    def linear(self, x, at):
        return F.linear(x.mean((2, 3)), self.state[f"{at}.weight"], self.state[f"{at}.bias"])

    def resnet(self, x):
        x = F.relu(self.both(x, "", 1))
        shortcut = "downsample" if "fc.weight" in self.state else "shortcut"
        for at, stage, first in self.blocks("layer"):
            stride = 2 if first and stage != "layer1" else 1
            if f"{at}.conv3.weight" in self.state:
                y = F.relu(self.both(x, f"{at}.", 1))
                y = self.both(F.relu(self.both(y, f"{at}.", 2, stride)), f"{at}.", 3)
            else:
                y = self.both(F.relu(self.both(x, f"{at}.", 1, stride)), f"{at}.", 2)
            if f"{at}.{shortcut}.0.weight" in self.state:
                x = self.bn(self.conv(x, f"{at}.{shortcut}.0", stride), f"{at}.{shortcut}.1")
            x = F.relu(x + y)
        return self.linear(x, "fc" if "fc.weight" in self.state else "linear")

    def wide_resnet(self, x):
        x = self.conv(x, "conv1")
        found = sorted({tuple(key.split(".")[:3]) for key in self.state if key.startswith("block")})
        for stage, layer, block in found:
            at, stride = f"{stage}.{layer}.{block}", 2 if block == "0" and stage != "block1" else 1
            a = F.relu(self.bn(x, f"{at}.bn1"))
            y = self.conv(F.relu(self.bn(self.conv(a, f"{at}.conv1", stride), f"{at}.bn2")), f"{at}.conv2")
            changes = f"{at}.convShortcut.weight" in self.state
            x = y + (self.conv(a, f"{at}.convShortcut", stride) if changes else x)
        return self.linear(F.relu(self.bn(x, "bn1")), "fc")

    def vgg(self, x):
        for stage in range(5):
            i = 0
            while f"block{stage}.{i}.weight" in self.state:
                x = F.relu(self.bn(self.conv(x, f"block{stage}.{i}"), f"block{stage}.{i + 1}"))
                i += 3
            x = F.max_pool2d(x, 2) if stage < 3 else x
        return self.linear(x, "classifier")

    def mobilenet(self, x):
        x = F.relu(self.bn(self.conv(x, "conv1.0", 2), "conv1.1"))
        for stage, (count, stride) in enumerate(((1, 1), (2, 1), (3, 2), (4, 2), (3, 1), (3, 2), (1, 1))):
            for block in range(count):
                at, y = f"blocks.{stage}.{block}.conv", x
                y = F.relu(self.bn(self.conv(y, f"{at}.0"), f"{at}.1"))
                y = F.relu(self.bn(self.conv(y, f"{at}.3", stride if block == 0 else 1), f"{at}.4"))
                y = self.bn(self.conv(y, f"{at}.6"), f"{at}.7")
                x = x + y if block > 0 else y
        return self.linear(F.relu(self.bn(self.conv(x, "conv2.0"), "conv2.1")), "classifier.0")

    def shufflenet1(self, x):
        x = F.relu(self.both(x, "", 1))
        for at, _, first in self.blocks("layer"):
            y = F.relu(self.both(x, f"{at}.", 1))
            y = y if x.shape[1] == 24 else F.channel_shuffle(y, 3)
            y = self.both(F.relu(self.both(y, f"{at}.", 2, 2 if first else 1)), f"{at}.", 3)
            x = F.relu(torch.cat((y, F.avg_pool2d(x, 3, 2, 1)), 1) if first else x + y)
        return self.linear(x, "linear")

    def shufflenet2(self, x):
        x = F.relu(self.both(x, "", 1))
        for at, _, first in self.blocks("layer"):
            at = f"{at}."
            if first:
                left = F.relu(self.both(self.both(x, at, 1, 2), at, 2))
                y = F.relu(self.both(self.both(F.relu(self.both(x, at, 3)), at, 4, 2), at, 5))
            else:
                left, y = x.chunk(2, 1)
                y = F.relu(self.both(self.both(F.relu(self.both(y, at, 1)), at, 2), at, 3))
            x = F.channel_shuffle(torch.cat((left, y), 1), 2)
        return self.linear(F.relu(self.both(x, "", 2)), "linear")


def by_hand(name):
    kinds = (("resnet", "resnet"), ("wrn", "wide_resnet"), ("vgg", "vgg"), ("mobilenet", "mobilenet"))
    kinds = (*kinds, ("shufflenetv1", "shufflenet1"), ("shufflenetv2", "shufflenet2"))
    return next(getattr(ByHand, kind) for start, kind in kinds if name.startswith(start))


# --- helpers


def empty(name, classes=100):
    """The network of this name, whose weights are whatever lay in memory."""
    with mock.patch.object(torch.Tensor, "uniform_"), mock.patch.object(torch.Tensor, "normal_"):
        return names.find(name, "")(channels=3, classes=classes)


@functools.cache
def scrambled(name):
    """In eval mode, with BatchNorms that are no identities and logits of size one; not to be changed."""
    network = build(Spec(name, 3, 10), 0).requires_grad_(False)
    draws = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value, lowest in ((module.weight, 0.5), (module.bias, -0.5), (module.running_mean, -0.5)):
                value.copy_(torch.rand(value.shape, generator=draws) + lowest)
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=draws) + 0.5)
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            module.bias.copy_(torch.rand(module.bias.shape, generator=draws) - 0.5)
    network.eval().head.weight.div_(network(images()).abs().max())
    return network


def images(size=16, batch=2):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


# --- sizes and layouts


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_and_state_dicts_are_the_published_ones(name):
    network, published = empty(name), layout(name)
    ours = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[name]
    assert translated(name, published) == ours
    assert in_published_layout(name, ours) == published
    assert translated(name, ours) == ours  # what is ours stays


def test_every_name_is_counted_or_of_the_shortcuts_without_parameters():
    others = {f"resnet{depth}" for depth in (8, 14, 20, 26, 32, 44, 56, 110)}
    assert set(names.FACTORIES) - set(PARAMETERS) == others | {"resnet26-b"}
    for name in sorted(others):
        state = {"conv1.weight": 0, "layer2.0.conv1.weight": 1, "fc.bias": 2}
        assert translated(name, state) == in_published_layout(name, state) == state


def test_keys_of_no_module_stay_and_only_whole_names_are_replaced():
    state = dict.fromkeys(("conv10.weight", "fcs.bias", "fc", "", "blocks.9.0.conv.0.weight", "layer4.0.bn1.bias"))
    for name in ("vgg13", "mobilenetv2", "wrn-40-2", "resnet56-b"):
        assert translated(name, state) == state
    assert translated("resnet56-b", {"layer2.0.downsample.1.bias": 0}) == {"stages.9.shortcut.1.bias": 0}
    assert list(translated("module:factory", {"fc.bias": 0})) == ["fc.bias"]


@pytest.mark.parametrize("name", KINDS)
def test_what_they_compute_on_published_names(name):
    network = scrambled(name)
    state = in_published_layout(name, network.state_dict())
    torch.testing.assert_close(network(images()), by_hand(name)(ByHand(state), images()), rtol=0, atol=2e-5)


def test_a_file_without_counts_of_batches_loads():
    """PyTorch before 0.4.1 did not count them."""
    state = {key: torch.rand(shape) for key, shape in layout("resnet8x4").items() if "num_batches" not in key}
    network = build(Spec("resnet8x4", 3, 100), 0)
    network.load_state_dict(translated("resnet8x4", state))
    assert torch.equal(network.head.bias, state["fc.bias"])
    with pytest.raises(RuntimeError, match=r"Unexpected.*layer1.0.conv1.weight"):
        build(Spec("resnet8", 3, 100), 0).load_state_dict(translated("resnet8", state))


# --- features


STAGES = {
    "resnet14-b": [(16, 32), (32, 16), (64, 8)],
    "resnet8x4": [(64, 32), (128, 16), (256, 8)],
    "resnet50": [(256, 32), (512, 16), (1024, 8), (2048, 4)],
    "wrn-16-2": [(32, 32), (64, 16), (128, 8)],
    "vgg11": [(64, 32), (128, 16), (256, 8), (512, 4)],
    "mobilenetv2": [(12, 16), (16, 8), (48, 4), (160, 2)],
    "shufflenetv1": [(240, 16), (480, 8), (960, 4)],
    "shufflenetv2": [(116, 16), (232, 8), (464, 4)],
}


@pytest.mark.parametrize("name", STAGES)
def test_stages_and_features_are_the_published_ones(name):
    network, x = scrambled(name), images(32, batch=1)
    shapes, hooks = {}, []
    for stage in find_stages(network, x):
        listen = network.get_submodule(stage).register_forward_hook
        hooks.append(listen(lambda _module, _inputs, output, stage=stage: shapes.update({stage: output.shape})))
    logits = network(x)
    for hook in hooks:
        hook.remove()
    assert logits.isfinite().all()
    assert [tuple(shape) for shape in shapes.values()] == [(1, c, size, size) for c, size in STAGES[name]]
    assert isinstance(network.head, nn.Linear)
    assert torch.equal(network.head(network.embed(x)), logits)


# --- training and attacks


@pytest.mark.parametrize("name", [*KINDS[:2], *KINDS[3:]])
def test_gradients_reach_everything(name):
    network = build(Spec(name, 3, 10), 0)
    F.cross_entropy(network(images(batch=4)), torch.arange(4)).backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


@pytest.mark.parametrize("name", KINDS)
def test_the_folded_view_computes_the_same(name):
    """In fp64, as gradients of the deepest turn on how single ReLUs are rounded."""
    network = copy.deepcopy(scrambled(name)).double()
    view = frozen(network)
    x, other = images(8).double().requires_grad_(), images(8).double().requires_grad_()
    got, want = view(x), network(other)
    assert view.folded
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    got.square().sum().backward()
    want.square().sum().backward()
    torch.testing.assert_close(x.grad, other.grad, rtol=0, atol=1e-10 * other.grad.abs().max().item())


@pytest.mark.parametrize("name", sorted(set(KINDS) - {"wrn-16-2"}))  # whose BatchNorms come before the convolutions
def test_every_batchnorm_folds(name):
    network = scrambled(name)
    graph = FoldedNetwork(network, Guards(network))._network.graph
    called = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    assert [n for n, module in network.named_modules() if isinstance(module, nn.BatchNorm2d) and n in called] == []


# --- memory formats


@pytest.mark.parametrize("name", [*names.FACTORIES, "wrn-16-2", "small-4-1"])
def test_no_1x1_convolution_strides(name):
    """See parts.subsampled."""
    for module in empty(name).modules():
        assert not (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.stride != (1, 1))


def bottlenecks(_):
    return nn.Sequential(Bottleneck(3, 16, 1), Bottleneck(16, 32, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize("name", ["resnet8-b", "bottlenecks", "vgg8", "mobilenetv2", "shufflenetv1", "shufflenetv2"])
def test_channels_last_changes_nothing(name):
    passes = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        network = (bottlenecks if name == "bottlenecks" else functools.partial(build, seed=0))(Spec(name, 3, 10))
        x = images(32).double().to(memory_format=memory_format).requires_grad_()
        network.double()(x).square().sum().backward()
        assert all(parameter.grad.is_contiguous() and parameter.grad.any() for parameter in network.parameters())
        passes.append([*(parameter.grad for parameter in network.parameters()), *network.buffers(), x.grad])
    largest = max(value.abs().max().item() for value in passes[0])
    for one, other in zip(*passes, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11 * largest)


# --- initial weights and names


@pytest.mark.parametrize("name", ["resnet8x4", "vgg8", "mobilenetv2"])
def test_convolutions_start_as_he_et_al_say(name):
    for module in build(Spec(name, 3, 10), 0).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)


@pytest.mark.parametrize("name", ["vgg8", "mobilenetv2"])
def test_heads_start_small(name):
    head = build(Spec(name, 3, 100), 0).head
    assert head.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not head.bias.any()


@pytest.mark.parametrize("name", ["shufflenetv1", "shufflenetv2"])
def test_shufflenets_start_as_pytorch_does(name):
    for module in build(Spec(name, 3, 10), 0).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
            bound = module.weight[0].numel() ** -0.5
            assert 0.9 * bound < module.weight.abs().max().item() <= bound


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        *(("wrn_40_2", "wrn-40-2"), ("ResNet50", "resnet50"), ("MobileNetV2", "mobilenetv2"), ("vgg13_bn", "vgg13")),
        *(("mobile_half", "mobilenetv2"), ("ShuffleV1", "shufflenetv1"), ("ShuffleV2", "shufflenetv2")),
        *(("resnet32X4", "resnet32x4"), ("resnet20b", "resnet20-b"), ("vgg-13", "vgg13")),
    ],
)
def test_names_that_others_use(name, meant):
    with pytest.raises(UserError, match=f"; did you mean {meant}\\?$"):
        check(name, "--student-network")


def test_no_name_is_guessed_of_nothing_alike():
    with pytest.raises(UserError, match=r"at most 9999\)$"):
        check("alexnet", "--student-network")


@pytest.mark.parametrize(
    ("make", "sizes", "rule"),
    [
        (CifarResNetB, {"depth": 18}, "depth=18: must be one of 8, 14"),
        (CifarResNetB, {"depth": 8, "widths": (16, 32)}, r"widths=\(16, 32\): must be three numbers"),
        (CifarResNetB, {"depth": 8, "widths": (16, 32, 0)}, "widths=.*above 0"),
        (CifarResNetB, {"depth": 8, "stem": 0}, "stem=.*above 0"),
        (ImageNetResNet, {"depth": 34}, "depth=34: must be one of 18, 50"),
        (VGG, {"depth": 9}, "depth=9: must be one of 8, 11, 13"),
        *((make, {"classes": 0}, "classes=.*above 0") for make in (MobileNetV2, ShuffleNetV1, ShuffleNetV2)),
    ],
)
def test_classes_check_their_own_sizes(make, sizes, rule):
    with pytest.raises(ValueError, match=rule):
        make(**{"channels": 3, "classes": 10, **sizes})
