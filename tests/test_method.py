"""The one abstraction itself."""

import math

import pytest
import torch
from torch import nn

from evenlens.config import Train
from evenlens.data import batches as orders
from evenlens.method import Diverged, Method, make_optimiser, schedule_factor
from tests.test_methods import batch_of, config, part_with, task


class WithTeacher(Method):
    """A method with a frozen network, as distillation has one."""

    def __init__(self, of, settings):
        super().__init__(of, settings)
        self.teacher = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5)).requires_grad_(False)


def test_a_frozen_network_stays_in_evaluation_with_its_statistics_and_its_dropout():
    method = WithTeacher(task(), config("erm")).train()
    assert method.net.training
    assert not method.teacher.training
    assert not method.teacher[1].training
    before = method.teacher[0].running_mean.clone()
    method.teacher(torch.rand(4, 3, 8, 8))
    assert torch.equal(before, method.teacher[0].running_mean)


def test_every_method_takes_as_many_steps_as_one_pass_over_the_training_images():
    train = part_with([[90, 10], [10, 91]])
    few = torch.arange(7)

    class Few(Method):
        def batches(self, train):
            return train.batches(orders.shuffled(few, train.generator))

        def step(self, batch):
            assert set(batch.index.tolist()) <= set(few.tolist())
            return {"loss": torch.tensor(float(len(batch.index)))}

    method = Few(task(), config("erm", **{"train.batch_size": 20}))
    steps = []
    method.step, inner = lambda batch: steps.append(1) or inner(batch), method.step
    method.prepare(train, train)
    method.train_epoch(train)
    assert len(steps) == math.ceil(201 / 20)


@pytest.mark.parametrize(("steps", "epochs", "each"), [(7, 3, [2, 2, 3]), (6, 3, [2, 2, 2]), (400, 1, [400])])
def test_a_budget_of_steps_is_spent_evenly_and_to_the_last(steps, epochs, each):
    method = Method(task(), config("erm", **{"train.steps": steps, "train.epochs": epochs, "train.batch_size": 10}))
    train, taken = part_with([[25, 25], [25, 25]]), []
    for epoch in range(epochs):
        method.epoch.fill_(epoch)
        taken.append(method.epoch_steps(train))
    assert taken == each
    assert sum(taken) == steps


def test_a_loss_that_is_no_number_stops_at_its_step():
    class Breaks(Method):
        def step(self, batch):
            self.steps = getattr(self, "steps", 0) + 1
            return {"loss": torch.tensor(math.nan if self.steps == 5 else 1.0)}

    method = Breaks(task(), config("erm", **{"train.batch_size": 10}))
    train = part_with([[50, 50], [50, 50]])
    method.prepare(train, train)
    with pytest.raises(Diverged, match="step 5 of epoch 1"):
        method.train_epoch(train)


def test_a_method_that_shows_nothing_is_refused():
    class Empty(Method):
        def batches(self, train):
            return []

    method = Empty(task(), config("erm"))
    train = part_with([[5, 5], [5, 5]])
    method.prepare(train, train)
    with pytest.raises(Exception, match="no training image"):
        method.train_epoch(train)


@pytest.mark.parametrize(
    ("schedule", "position", "factor"),
    [
        ("constant", 9.9, 1.0),
        ("cosine", 0.0, 1.0),
        ("cosine", 5.0, 0.5),
        ("step", 2.9, 1.0),
        ("step", 3.0, 0.1),
        ("step", 6.0, 0.01),
        ("quarters", 1.9, 1.0),
        ("quarters", 2.0, 0.1),
        ("quarters", 5.0, 0.01),
        ("quarters", 7.0, 0.001),
        ("halves", 4.9, 1.0),
        ("halves", 5.0, 0.1),
        ("halves", 9.9, 0.1),
    ],
)
def test_the_schedules_are_as_documented(schedule, position, factor):
    assert schedule_factor(schedule, position, 10) == pytest.approx(factor)


def test_the_learning_rate_follows_the_schedule_within_an_epoch():
    method = Method(task(), config("erm", **{"train.epochs": 1, "train.batch_size": 10, "train.learning_rate": 0.5}))
    train = part_with([[25, 25], [25, 25]])
    rates = []

    class Watched(Method):
        def step(self, batch):
            rates.append(self.optimisers[0].param_groups[0]["lr"])
            return {"loss": torch.zeros(())}

    method = Watched(task(), method.config)
    method.prepare(train, train)
    method.train_epoch(train)
    assert rates == pytest.approx([0.25 * (1 + math.cos(math.pi * k / 10)) for k in range(10)])


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_the_optimisers_are_those_of_torch(name):
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    twin = nn.Parameter(weight.detach().clone())
    ours = make_optimiser(Train(optimizer=name, learning_rate=0.1, weight_decay=0.01), [weight])
    theirs = {
        "adam": lambda: torch.optim.Adam([twin], 0.1, weight_decay=0.01),
        "adamw": lambda: torch.optim.AdamW([twin], 0.1, weight_decay=0.01),
        "sgd": lambda: torch.optim.SGD([twin], 0.1, momentum=0.9, weight_decay=0.01),
    }[name]()
    for _ in range(3):
        for parameter, optimiser in ((weight, ours), (twin, theirs)):
            optimiser.zero_grad()
            (parameter**2).sum().backward()
            optimiser.step()
    assert torch.equal(weight, twin)


def test_with_nothing_overridden_a_step_is_a_step_down_the_cross_entropy():
    method = Method(task(), config("erm"))
    train = part_with([[5, 5], [5, 5]])
    method.prepare(train, train)
    batch = batch_of([0, 1], [0, 1])
    before = method.loss(batch).item()
    for _ in range(5):
        method.step(batch)
    assert method.loss(batch).item() < before
