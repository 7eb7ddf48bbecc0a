"""Training together is training alone: the same batches, the same steps, the same weights up to rounding."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import Tiny, generator
from study import networks as models
from study.data import Images
from study.training import loop as train
from study.training.adversarial import Adversary
from study.training.distributed import Processes
from study.training.ensemble import fit_together
from study.training.loop import Recipe
from wellcond.kinds.convolution import recompute
from wellcond.methods.registry import find
from wellcond.methods.settings import Settings
from wellcond.optim import LowRankSGD

ROUNDING = 1e-10
"""float64: a batched kernel rounds otherwise, by 1e-16; some 30 steps have been seen to make 1e-14 of it."""

PROTOCOL = {"epochs": 5, "batch_size": 16, "milestones": [2], "gamma": 0.5, "augment": "crop_flip"}


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Convolutional(models.LeNet5):
    """LeNet5 with fewer channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 5), nn.Conv2d(4, 6, 5)
        self.fc1, self.fc2 = nn.Linear(96, 16), nn.Linear(16, 10)


class Normalized(nn.Module):
    """Batch normalization with a momentum, in-place activations and global pooling, as in the larger networks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 7, stride=7, bias=False)
        self.bn1 = nn.BatchNorm2d(8, momentum=0.9)
        self.conv2 = nn.Conv2d(8, 12, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(12)
        self.classifier = nn.Linear(12, 10)

    def forward(self, x):
        x = F.leaky_relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.leaky_relu(self.bn2(self.conv2(x)))
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))


def images(seed, n=70):
    labels = torch.randint(0, 10, (n,), generator=generator(seed))
    return Images(torch.randint(0, 256, (n, 1, 28, 28), generator=generator(seed + 1)).to(torch.uint8), labels)


DATA = [images(10 * k) for k in range(3)]
SEEDS = [3, 4, 5]

METHODS = [
    ("dense", Settings()),
    ("uv", Settings(ratio=0.5)),
    ("usv", Settings(ratio=0.5)),
    ("condlr", Settings(ratio=0.5, max_cond=1.1)),
    ("condlr_published", Settings(ratio=0.5, max_cond=1.1)),
    ("condlr_published", Settings(ratio=0.5, max_cond=1.0)),
    ("projected_sgd", Settings()),
    ("cayley_sgd", Settings()),
]
every_method = pytest.mark.parametrize(("method", "settings"), METHODS, ids=[f"{m}-{s.max_cond:g}" for m, s in METHODS])


def members(method="dense", settings=Settings(), network=Tiny):  # noqa: B008
    found = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        model = find(method).prepare(network(), settings)
        found.append(model.to(memory_format=torch.channels_last))
    return found


def sgd(model, method="dense", settings=Settings(), lr=0.1):  # noqa: B008
    return LowRankSGD(find(method).groups(model, settings), lr=lr, momentum=0.4, weight_decay=1e-3)


def trained_alone(networks, method="dense", settings=Settings(), data=DATA, **protocol):  # noqa: B008
    """Copies of the networks, each trained by `fit`."""
    networks = copy.deepcopy(networks)
    for network, part, seed in zip(networks, data, SEEDS, strict=True):
        train.fit(network, sgd(network, method, settings), part, Recipe(**{**PROTOCOL, **protocol}), seed=seed)
    return networks


def together(networks, method="dense", settings=Settings(), data=DATA, on_epoch=None, **protocol):  # noqa: B008
    recipe = Recipe(**{**PROTOCOL, **protocol})
    return fit_together(networks, sgd(networks[0], method, settings), data, recipe, seeds=SEEDS, on_epoch=on_epoch)


def assert_same(found, expected):
    """Parameters and buffers."""
    torch.testing.assert_close(found.state_dict(), expected.state_dict(), rtol=0, atol=ROUNDING)


# ------------------------------------------------------------------------------------------------ as if each were alone


@every_method
def test_members_are_trained_as_if_alone(method, settings):
    """25 steps, with augmentation, momentum, weight decay and a short last batch."""
    networks = members(method, settings)
    expected = trained_alone(networks, method, settings)
    start = copy.deepcopy(networks)
    assert together(networks, method, settings) == [None] * 3
    for found, wanted, before in zip(networks, expected, start, strict=True):
        assert_same(found, wanted)
        moved = [not torch.equal(p, q) for p, q in zip(found.parameters(), before.parameters(), strict=True)]
        assert all(moved)


def test_a_warm_up_is_that_of_each_alone():
    networks, rising = members(), {"warmup": 3, "warmup_start": 0.25}
    expected, plain = trained_alone(networks, **rising), trained_alone(networks)
    assert together(networks, **rising) == [None] * 3
    for found, wanted, other in zip(networks, expected, plain, strict=True):
        assert_same(found, wanted)
        assert not torch.equal(found.classifier.weight, other.classifier.weight)


@pytest.mark.parametrize("network", [Convolutional, Normalized])
@pytest.mark.parametrize(("method", "settings"), [METHODS[0], METHODS[1], METHODS[3]], ids=["dense", "uv", "condlr"])
def test_other_networks(network, method, settings):
    """Running statistics of batch normalization are those of each member's own batches."""
    networks = members(method, settings, network)
    options = {
        "data": [part.first(24) for part in DATA],
        "batch_size": 8,
        "epochs": 7,
        "milestones": [],
        "augment": "none",
    }
    expected = trained_alone(networks, method, settings, **options)
    assert together(networks, method, settings, **options) == [None] * 3
    for found, wanted in zip(networks, expected, strict=True):
        assert_same(found, wanted)
        assert found.state_dict().get("bn1.num_batches_tracked", torch.tensor(21)) == 21


def test_each_member_has_its_own_order_of_images():
    """Equal networks on equal data part as soon as their seeds order the images."""
    networks = [copy.deepcopy(members()[0]) for _ in SEEDS]
    together(networks, data=[DATA[0]] * 3)
    weights = [network.hidden.weight for network in networks]
    assert min((weights[0] - weights[1]).norm(), (weights[0] - weights[2]).norm()) > 1e-3


def test_members_are_reported_and_up_to_date_after_each_epoch():
    networks, expected, found = members("usv"), {}, {}
    for k, network in enumerate(copy.deepcopy(networks)):

        def note(epoch, loss, k=k, network=network):
            expected[k, epoch] = (loss, network.hidden.S.detach().clone())

        train.fit(network, sgd(network, "usv"), DATA[k], Recipe(**PROTOCOL), seed=SEEDS[k], on_epoch=note)

    def note_member(k, epoch, loss):
        assert not any(network.training for network in networks)
        found[k, epoch] = (loss, networks[k].hidden.S.detach().clone())

    together(networks, "usv", on_epoch=note_member)
    assert list(found) == [(k, epoch) for epoch in range(1, 6) for k in range(3)]
    for key, (loss, S) in found.items():
        assert loss == pytest.approx(expected[key][0], rel=1e-10)
        torch.testing.assert_close(S, expected[key][1], rtol=0, atol=ROUNDING)
    assert not any(network.training for network in networks)


def test_one_model_is_trained_by_fit():
    """Bit for bit; also its divergence is returned."""
    (network, *_), (expected, *_) = members("condlr"), members("condlr")
    train.fit(expected, sgd(expected, "condlr"), DATA[0], Recipe(**PROTOCOL), seed=3)
    assert fit_together([network], sgd(network, "condlr"), DATA[:1], Recipe(**PROTOCOL), seeds=[3]) == [None]
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), expected.parameters(), strict=True))
    (reason,) = fit_together([network], sgd(network, lr=math.inf), DATA[:1], Recipe(**PROTOCOL), seeds=[3])
    assert isinstance(reason, train.Diverged)


def test_dropout_is_independent_from_member_to_member():
    class Dropping(Tiny):
        def forward(self, x):
            return super().forward(F.dropout(x, 0.5, self.training))

    networks = [copy.deepcopy(members(network=Dropping)[0]) for _ in SEEDS]
    fit_together(networks, sgd(networks[0]), [DATA[0]] * 3, Recipe(epochs=1, batch_size=70), seeds=[0, 0, 0])
    weights = [network.conv.weight for network in networks]
    assert min((weights[0] - weights[1]).norm(), (weights[1] - weights[2]).norm()) > 1e-4


class CountReads(TorchDispatchMode):
    """How often the host reads a number of the device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ["dense", "uv"])
def test_the_host_reads_nothing_within_an_epoch(method):
    """Whatever the number of steps."""
    counts = []
    for batch_size in (70, 7):
        networks = members(method, Settings(ratio=0.5))
        with CountReads() as reads:
            together(networks, method, epochs=2, batch_size=batch_size, on_epoch=lambda *_: torch.ones(()).item())
        counts.append(reads.count)
    assert counts == [6, 6]  # those of on_epoch


# ----------------------------------------------------------------------------------------------------------- divergence


class Poisoned:
    """Images of which one batch of the second epoch is not a number."""

    def __init__(self, inner):
        self.inner = inner

    def __len__(self):
        return len(self.inner)

    def batches(self, size, *, seed, epoch, augment):
        for index, (x, y) in enumerate(self.inner.batches(size, seed=seed, epoch=epoch, augment=augment)):
            yield (x * math.nan if (epoch, index) == (2, 1) else x), y


@every_method
def test_a_diverging_member_does_not_disturb_the_others(method, settings):
    """It keeps the weights of its last whole epoch and is reported no further."""
    networks, epochs = members(method, settings, Tiny), []
    expected = trained_alone(networks, method, settings)
    expected[1] = trained_alone(networks, method, settings, epochs=1)[1]
    reasons = together(
        networks,
        method,
        settings,
        data=[DATA[0], Poisoned(DATA[1]), DATA[2]],
        on_epoch=lambda k, epoch, loss: epochs.append((k, epoch)),
    )
    assert [type(reason) for reason in reasons] == [type(None), train.Diverged, type(None)]
    assert str(reasons[1]) == "epoch 2: training loss nan"
    assert epochs == [(0, 1), (1, 1), (2, 1), *((k, epoch) for epoch in range(2, 6) for k in (0, 2))]
    for found, wanted in zip(networks, expected, strict=True):
        assert_same(found, wanted)


@pytest.mark.parametrize("retraction", ["qr", "polar", "cayley"])
def test_an_exploding_member_is_contained_by_every_retraction(retraction):
    """One network is so large that its own losses and steps overflow."""
    settings = Settings(ratio=0.5, max_cond=1.1)
    networks = members("condlr", settings)
    for p in networks[1].parameters():
        p.data *= 1e150

    def optimizer(model):
        groups = [{**group, "retraction": retraction} for group in find("condlr").groups(model, settings)]
        return LowRankSGD(groups, lr=0.1)

    expected = copy.deepcopy(networks)
    for k in (0, 2):
        train.fit(expected[k], optimizer(expected[k]), DATA[k], Recipe(**PROTOCOL), seed=SEEDS[k])
    reasons = fit_together(networks, optimizer(networks[0]), DATA, Recipe(**PROTOCOL), seeds=SEEDS)
    assert [reason is None for reason in reasons] == [True, False, True]
    for k in (0, 2):
        assert_same(networks[k], expected[k])


def test_when_all_have_diverged_training_ends():
    epochs = []
    networks = members()
    poisoned = [Poisoned(part) for part in DATA]
    reasons = together(networks, data=poisoned, on_epoch=lambda k, epoch, loss: epochs.append(epoch))
    assert [str(reason) for reason in reasons] == ["epoch 2: training loss nan"] * 3
    assert epochs == [1, 1, 1]
    assert not any(network.training for network in networks)


def test_weights_that_are_not_finite_are_found_though_the_loss_is():
    """The last step of an epoch is seen by no forward pass."""
    networks = members()
    reasons = fit_together(networks, sgd(networks[0], lr=math.inf), DATA, Recipe(epochs=1, batch_size=100), seeds=SEEDS)
    assert [str(reason) for reason in reasons] == ["epoch 1: training loss nan"] * 3


@pytest.mark.filterwarnings("ignore:Detected call of")  # the learning rate is scheduled without a step
def test_no_images_are_a_divergence_and_no_epochs_are_none():
    networks = members()
    assert together(networks, epochs=0) == [None] * 3
    assert not any(network.training for network in networks)
    assert None not in together(networks, data=[part.first(0) for part in DATA])


# --------------------------------------------------------------------------------------------------------------- errors


def used(model):
    optimizer = sgd(model)
    train.fit(model, optimizer, DATA[0], Recipe(epochs=1, batch_size=70))
    return optimizer


def factorized(ratio):
    return find("uv").prepare(Tiny(), Settings(ratio=ratio))


ERRORS = {
    "no models": ({"models": []}, "models = []: must be one or more"),
    "another rank": ({"models": [factorized(r) for r in (0.5, 0.5, 0.6)]}, "hidden.U of shapes (24, 12) and (24, 10)"),
    "another class": ({"models": [Tiny(), Tiny(), factorized(0.5)]}, "conv.U of shapes None and (6, 3)"),
    "too few data": ({"data": DATA[:2]}, "data = '2 of them': must be 3, one for each model"),
    "too many seeds": ({"seeds": range(4)}, "seeds = '4 of them': must be 3, one for each model"),
    "unequal data": ({"data": [*DATA[:2], DATA[2].first(60)]}, "data = 'batches of 12 and 16 images': must be as many"),
    "unequal batches": (
        {"data": [*DATA[:2], DATA[2].first(64)]},
        "data = 'batches of 0 and 6 images': must be as many",
    ),
    "recomputing": (
        {"models": [recompute(factorized(0.5)) for _ in SEEDS]},
        "models = 'layers that recompute': must be wc.recompute(model, on=False) in several at once",
    ),
    "a used optimizer": ({"optimizer": used(Tiny())}, "optimizer = 'one that has taken steps': must be new"),
    "a stranger": ({"optimizer": sgd(Tiny())}, "optimizer = 'one with 6 other parameters': must be of the parameters"),
    "an adversary": ({"adversary": Adversary("mix", 1.0, 0.1)}, "must be None for several models"),
    "processes": (
        {"processes": Processes(0, 2)},
        "processes = Processes(rank=0, size=2): must be Processes(rank=0, size=1)",
    ),
}


@pytest.mark.parametrize(("changed", "message"), ERRORS.values(), ids=ERRORS)
def test_what_cannot_be_trained_together_is_refused_in_a_line(changed, message):
    networks = changed.get("models", members())
    given = {
        "optimizer": sgd(networks[0]) if networks else sgd(Tiny()),
        "data": DATA,
        "protocol": Recipe(1, 16),
        "seeds": SEEDS,
    }
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        fit_together(networks, **{**given, **{key: value for key, value in changed.items() if key != "models"}})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
