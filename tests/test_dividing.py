"""One training on two processes: what is computed is what one process computes, for every method."""

import pytest
import torch
from torch import nn

from evenlens import dividing, engine, methods, model_file
from evenlens.config import Net
from evenlens.data.dataset import FairDataset, Task
from evenlens.nets import build
from tests import pair
from tests.test_contract import bound, config_of, required, splits_of

STEPS = 20


@pytest.fixture(scope="session")
def two():
    call, stop = pair.start()
    yield call
    stop()


class Exact(FairDataset):
    """A part whose images are float64, so that rounding, which Adam makes large, does not hide a difference."""

    def batches(self, order=None, augment=None):
        for batch in super().batches(order, augment):
            yield batch._replace(image=batch.image.double())


def exact(part, config, seed):
    return Exact(**vars(bound(part, config, seed)))


def trained(name, settings, seed=1):
    """What a method's parameters, buffers and logits are after 20 steps, in float64."""
    config = config_of(name)
    config = config.model_copy(update={"train": config.train.model_copy(update=settings)})
    splits = splits_of(config)
    torch.manual_seed(seed)
    method = model_file.build_method(splits.task, config, required(config, splits, seed)).double()
    train, tune = exact(splits.train, config, seed), exact(splits.tune, config, seed)
    logs = []
    with dividing.divided():
        method.prepare(train, tune)
        method.double()
        method.fit(train, tune, logs.append)
    return {name: value.detach() for name, value in (*method.named_parameters(), *method.named_buffers())}, logs


@pytest.mark.parametrize("name", methods.names())
def test_two_processes_train_what_one_trains(name, two):
    settings = {"epochs": 2, "steps": STEPS, "batch_size": 33}  # an odd number: shares of 17 and 16
    alone = trained(name, settings)
    first, second = two(trained, name, settings)
    assert first[0].keys() == alone[0].keys()
    for key, value in alone[0].items():
        assert torch.equal(first[0][key], second[0][key]), f"{key} differs between the processes"
        if value.is_floating_point():
            assert ((first[0][key] - value).abs() < 1e-5).all(), (key, (first[0][key] - value).abs().max().item())
        else:
            assert torch.equal(first[0][key], value), key
    assert len(first[1]) == len(alone[1])
    for here, there in zip(first[1], alone[1], strict=True):
        assert here == pytest.approx(there, abs=1e-5)


def of_network(backbone, num):
    """How many rows the network saw, what it gives, and gradients and their gradients of weights and images."""
    torch.manual_seed(1)
    net = build(Net(backbone=backbone), Task(("0", "1"), ("0", "1"), 32)).double().train()
    image = torch.rand(num, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    seen = []
    net.backbone.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    first = next(module for module in net.backbone.modules() if isinstance(module, nn.Conv2d))
    first.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    with dividing.divided():
        logits = net(image)
        wanted = [image, *net.parameters()]
        gradients = torch.autograd.grad(logits.square().sum(), wanted, create_graph=True)
        again = torch.autograd.grad(sum(each.square().sum() for each in gradients), wanted)
    statistics = [buffer for name, buffer in net.named_buffers() if "running" in name]
    return seen[0], [logits.detach(), *(each.detach() for each in gradients), *again, *statistics]


@pytest.mark.parametrize("backbone", ["small_cnn", "resnet18"])
@pytest.mark.parametrize(("num", "shares"), [(9, (5, 4)), (1, (1, 1))], ids=["divided", "too small"])
def test_gradients_of_gradients_and_running_statistics_are_those_of_the_whole_batch(two, backbone, num, shares):
    _, alone = of_network(backbone, num)
    found = two(of_network, backbone, num)
    assert (found[0][0], found[1][0]) == shares  # each computed its own rows
    for _, values in found:
        for here, there in zip(values, alone, strict=True):
            torch.testing.assert_close(here, there, rtol=1e-6, atol=1e-9)


def drawn(name, part):
    config = config_of(name)
    train = getattr(splits_of(config), part).on(torch.device("cpu"), batch_size=33, seed=1, augment="crop_flip")
    return [(batch.index.tolist(), batch.image.sum().item()) for batch in train.batches()]


def test_all_processes_draw_the_batches_that_one_draws(two):
    first, second = two(drawn, "erm", "train")
    assert first == second == drawn("erm", "train")


def told(value):
    return engine.agreed((engine.place(), value)), engine.processes()


def test_what_the_first_process_says_holds_for_all(two):
    assert two(told, "word") == [((0, "word"), 2), ((0, "word"), 2)]


def apart_then_alike():
    net = nn.BatchNorm1d(2)
    nn.init.constant_(net.weight, engine.place())
    net.running_mean += engine.place()
    dividing.keep_alike(net)
    return net.weight.tolist(), net.running_mean.tolist()


def test_states_that_drifted_apart_are_brought_together(two):
    assert two(apart_then_alike) == [([0.0, 0.0], [0.0, 0.0])] * 2
