"""What is asked of every method on a device beside the CPU, one that needs no GPU: see `tests.elsewhere`."""

from dataclasses import replace

import pytest
import torch

from evenlens import engine, methods, model_file, run
from evenlens.config import make_config
from evenlens.data import augment
from evenlens.data.dataset import PARTS, Splits
from evenlens.generation.students.settings import Settings
from evenlens.generation.students.training import Training
from tests import elsewhere, test_contract, test_students

CPU = torch.device("cpu")
REMOVING = ("pruning/", "methods/_pruner.py")  # weights are removed every so many steps, not in each


@pytest.fixture(scope="module")
def far(tmp_path_factory):
    """Call a function in a process that knows the device."""
    with pytest.MonkeyPatch.context() as patch, elsewhere.start() as process:
        patch.setenv("EVENLENS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield lambda *asked: process.submit(*asked).result(120)


def bound(part, device):
    return replace(part, pixels=part.pixels.to(device)).on(device, batch_size=32, seed=1)


def tensors(state):
    return {key: value.cpu() for key, value in state.items() if isinstance(value, torch.Tensor)}


def between_steps(waits, epoch):
    """Give what to call after each step, and the list to which it adds the waits since the last one of the epoch."""
    between, last = [], None

    def stepped():
        nonlocal last
        if last and last[0] == epoch():
            between.extend(waits[last[1] :])
        last = epoch(), len(waits)

    return stepped, between


def learned(name, device, waits=()):
    """Fit a method there; give its log, its state, what it predicts, and the waits between steps of one epoch."""
    config = test_contract.config_of(name)
    splits = test_contract.splits_of(config)
    with engine.fork_rng(CPU):
        needed = test_contract.required(config, splits)
    torch.manual_seed(1)
    method = model_file.build_method(splits.task, config, needed).to(device)
    train, tune = bound(splits.train, device), bound(splits.tune, device)
    log = []
    method.stepped, between = between_steps(waits, lambda: len(log))
    method.prepare(train, tune)
    method.fit(train, tune, log.append)
    return log, tensors(method.state_dict()), run.predict(method, tune), between


def learned_on_both(name):
    on_cpu = learned(name, CPU)
    with elsewhere.present() as (device, waits):
        return on_cpu, learned(name, device, waits)


def refused_and_waited_for():
    with elsewhere.present() as (device, waits):
        host, there, one = torch.rand(3), torch.rand(3).to(device), torch.ones((), device=device)
        for do in (
            lambda: there + host,
            lambda: host.add_(one),
            lambda: host[there.argsort()],
            lambda: torch.rand(3, generator=torch.Generator(), device=device),
            lambda: there.normal_(generator=torch.Generator()),
            lambda: there.numpy(),
        ):
            with pytest.raises((RuntimeError, TypeError)):
                do()
        counts = []
        for do in (
            lambda: there + 1 + host.sum(),
            lambda: there[there.argsort()],
            lambda: host.to(device, non_blocking=True),
            lambda: there.sum().item(),
            lambda: bool((there > 0).any()),
            lambda: there[there > 0],
            lambda: there[host.argsort()],
            lambda: there.cpu(),
            lambda: host.to(device),
            lambda: there.new_tensor([1.0]),
            lambda: host.copy_(there),
        ):
            waits.clear()
            do()
            counts.append(len(waits))
    return counts


def test_the_device_refuses_what_a_gpu_refuses_and_knows_when_it_is_waited_for(far):
    assert far(refused_and_waited_for) == [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("name", methods.names())
def test_a_method_learns_the_same_there_and_waits_for_the_device_between_epochs_only(name, far):
    (log, state, logits, _), (log_there, state_there, logits_there, waits) = far(learned_on_both, name)
    assert log_there == log
    torch.testing.assert_close(logits_there, logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(state_there, state, rtol=0, atol=1e-5)
    assert [wait for wait in waits if not wait.startswith(REMOVING)] == []


def augmented_on_both(name):
    train = test_contract.splits_of(test_contract.config_of("erm")).train
    on_cpu = [tuple(batch) for batch in bound(train, CPU).batches(augment=name)]
    with elsewhere.present() as (device, waits):
        part = bound(train, device)
        waits.clear()
        batches = list(part.batches(augment=name))
        waited = list(waits)
        on_device = [tuple(value.cpu() for value in batch) for batch in batches]
    return on_cpu, on_device, waited


@pytest.mark.parametrize("name", augment.AUGMENTS)
def test_images_are_augmented_the_same_there_and_the_device_is_not_waited_for(name, far):
    on_cpu, on_device, waits = far(augmented_on_both, name)
    torch.testing.assert_close(on_device, on_cpu, rtol=0, atol=1e-6)
    assert waits == []


def distilled(device, waits=()):
    """Train a student there; give its losses, its weights, and the waits between steps of one epoch."""
    settings = Settings(**test_students.SMALL, features=0.4, adversarial=0.3, gradient_penalty=1.0, fresh=True)
    training = Training(test_students.linear_lessons(64), settings, device)
    step = training._step
    stepped, between = between_steps(waits, lambda: training.epoch)

    def watched(*given):
        found = step(*given)
        stepped()
        return found

    training._step = watched
    losses = [training.train_epoch() for _ in range(2)]
    return losses, tensors(training.average.state_dict()), between


def distilled_on_both():
    on_cpu = distilled(CPU)
    with elsewhere.present() as (device, waits):
        return on_cpu, distilled(device, waits)


def test_a_student_of_a_generator_learns_the_same_there_and_no_step_waits(far):
    (losses, state, _), (losses_there, state_there, waits) = far(distilled_on_both)
    for there, here in zip(losses_there, losses, strict=True):
        assert there == pytest.approx(here, abs=1e-5)
    torch.testing.assert_close(state_there, state, rtol=0, atol=1e-3)  # Adam follows rounding where nothing is learned
    assert waits == []


class Killed(Exception):
    pass


def killed_in_the_second_epoch(what, done, total):
    if what == "steps" and done > total // 2:
        raise Killed


def near(splits, device):
    pixels = splits.train.pixels.to(device)
    return splits._replace(**{name: replace(getattr(splits, name), pixels=pixels, ahead=None) for name in PARTS})


def made_on_both(name, settings, folder):
    config = make_config("tiny", name, {**test_contract.SHORT, **settings})
    whole = run.train(config, folder / "cpu")
    with elsewhere.present() as (device, _), pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "MIDDLE_SECONDS", -1.0)  # saved after each step
        patch.setattr(engine, "start", lambda threads=None: device)
        patch.setattr(Splits, "near", near)
        with pytest.raises(Killed):
            run.train(config, folder / "device", killed_in_the_second_epoch)
        made = run.train(config, folder / "device")
        photographs = torch.rand(2, 3, 32, 32)
        logits = made.load().to(device)(photographs.to(device)).cpu()
    return (whole.metrics, whole.load()(photographs)), (made.metrics, logits)


RUNS = {
    "plain": ("erm", {}),
    "lines": ("erm", {"data.view": "weber_dog"}),
    "two optimisers": ("bias_mimicking", {}),
    "from a run": ("inferred_group_thresholds", {}),
    "pruned": ("taylor", {}),
}


@pytest.mark.parametrize(("name", "settings"), RUNS.values(), ids=RUNS)
def test_a_run_that_was_killed_there_ends_with_the_numbers_of_one_on_the_cpu(name, settings, far, tmp_path):
    (metrics, logits), (metrics_there, logits_there) = far(made_on_both, name, settings, tmp_path)
    assert metrics_there == metrics
    torch.testing.assert_close(logits_there, logits, rtol=0, atol=1e-5)
