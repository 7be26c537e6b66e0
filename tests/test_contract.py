"""What is asked of every file in methods/, without another line: a new file is tested by being there."""

import inspect
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from evenlens import datasets, methods, metrics, model_file, plan, registry, run
from evenlens.config import keyword_options, make_config, option_owners
from evenlens.data import source
from evenlens.data.dataset import Batch
from evenlens.method import Method

SHORT = {"train.epochs": 2, "train.batch_size": 32, "precision": "fp32"}
CPU = torch.device("cpu")

every_method = pytest.mark.parametrize("name", methods.names())


def config_of(name, **data):
    settings = {**SHORT, **{f"data.{key}": value for key, value in data.items()}}
    return plan.complete(make_config("tiny", name, settings))


def splits_of(config):
    return source.load("tiny", datasets.get("tiny"), config.data).splits


def bound(part, config, seed=1):
    return part.on(CPU, batch_size=config.train.batch_size, seed=seed)


def required(config, splits, seed=1):
    """Methods trained a little by cross-entropy, in place of those that the runner would find or make."""
    made = plan.plain_methods(config, splits.task)
    for entry in made.values():
        for method in entry if isinstance(entry, nn.ModuleList) else [entry]:
            method.load_state_dict(plain(config, splits, method.task.class_names == splits.task.group_names, seed))
    return made


KNOWN = {}


def plain(config, splits, of_group=False, seed=1):
    """The state of a method that is trained by cross-entropy, to tell the label or the group; made once."""
    key = config.data.model_dump_json(), config.train.model_dump_json(), len(splits.train), of_group, seed
    if key not in KNOWN:
        torch.manual_seed(seed)
        method = Method(replace(splits.task, class_names=splits.task.group_names) if of_group else splits.task, config)
        train = bound(splits.train, config, seed)
        if of_group:
            train = replace(train, label=train.group)
            nn.init.zeros_(method.net.head.weight)  # so that it starts alike however the groups are numbered
            nn.init.zeros_(method.net.head.bias)
        method.prepare(train, train)
        method.fit(train, train, lambda log: None)
        KNOWN[key] = method.state_dict()
    return KNOWN[key]


def fitted(config, splits, seed=1, epochs=None):
    needed = required(config, splits, seed)
    torch.manual_seed(seed)
    method = model_file.build_method(splits.task, config, needed)
    train, tune = bound(splits.train, config, seed), bound(splits.tune, config, seed)
    method.prepare(train, tune)
    logs = []
    method.fit(train, tune, logs.append)
    return method, logs


def logits_of(method, splits, config):
    return run.predict(method, bound(splits.test, config))


@every_method
def test_forward_gives_a_finite_logit_for_each_class(name):
    config = config_of(name)
    splits = splits_of(config)
    method, _ = fitted(config, splits)
    image = torch.rand(5, 3, splits.task.image_size, splits.task.image_size)
    method.eval()
    if "prediction" in method.needs_group:
        zero = torch.zeros(5, dtype=torch.long)
        logits = method.predict(Batch(image, zero, torch.arange(5) % splits.task.num_groups, zero))
    else:
        logits = method(image)
    assert logits.shape == (5, splits.task.num_classes)
    assert logits.isfinite().all()
    assert logits.dtype == torch.float32


@every_method
def test_every_optimised_parameter_moves_and_none_is_left_out(name):
    config = config_of(name)
    splits = splits_of(config)
    torch.manual_seed(1)
    method = model_file.build_method(splits.task, config, required(config, splits))
    train, tune = bound(splits.train, config), bound(splits.tune, config)
    method.prepare(train, tune)
    before = {key: weight.detach().clone() for key, weight in method.named_parameters()}
    method.fit(train, tune, lambda log: None)
    owned = {id(w) for optimiser in method.optimisers for group in optimiser.param_groups for w in group["params"]}
    for key, weight in method.named_parameters():
        assert weight.requires_grad == (id(weight) in owned), f"{key} wants a gradient and has no optimiser, or reverse"
        if id(weight) in owned:
            assert not torch.equal(weight, before[key]), f"{key} is optimised and did not move"


@every_method
def test_frozen_networks_stay_as_they_are_to_the_bit(name):
    config = config_of(name)
    splits = splits_of(config)
    torch.manual_seed(1)
    frozen = required(config, splits)
    before = {key: {k: v.clone() for k, v in net.state_dict().items()} for key, net in frozen.items()}
    method = model_file.build_method(splits.task, config, frozen)
    train, tune = bound(splits.train, config), bound(splits.tune, config)
    method.prepare(train, tune)
    method.fit(train, tune, lambda log: None)
    for key, net in frozen.items():
        for entry, value in net.state_dict().items():
            assert torch.equal(value, before[key][entry]), f"{key}.{entry} changed"


@every_method
@pytest.mark.parametrize("absent", ["group", "cell"])
def test_an_absent_group_or_cell_does_no_harm(name, absent):
    config = config_of(name, num_groups=3)
    splits = splits_of(config)
    gone = splits.train.group == 1
    if absent == "cell":
        gone &= splits.train.label == 0
    splits = splits._replace(train=splits.train.select(torch.nonzero(~gone).flatten()))
    splits = splits._replace(tune=splits.train)
    method, logs = fitted(config, splits)
    assert all(math.isfinite(value) for log in logs for value in log.values())
    assert logits_of(method, splits, config).isfinite().all()


@every_method
def test_a_batch_of_one_does_no_harm(name):
    settings = {**SHORT, "train.batch_size": 1, "train.steps": 4, "train.epochs": 2}
    config = plan.complete(make_config("tiny", name, settings))
    splits = splits_of(config)
    _, logs = fitted(config, splits)
    assert all(math.isfinite(value) for log in logs for value in log.values())


@every_method
def test_saved_built_anew_and_loaded_it_predicts_the_same(name, tmp_path):
    made = run.train(make_config("tiny", name, SHORT), tmp_path)
    loaded = made.load()
    config = made.config
    logits = run.predict(loaded, splits_of(config).test.on(CPU, batch_size=64))
    saved = made.predictions("test")
    for number in range(logits.shape[1]):
        assert torch.allclose(logits[:, number], torch.from_numpy(saved[f"logit.{number}"].copy()), atol=1e-6)
    assert not any(weight.requires_grad for weight in loaded.parameters())


@every_method
def test_the_same_seed_gives_the_same_result_and_another_seed_another(name):
    config = config_of(name)
    splits = splits_of(config)
    first, again, other = (logits_of(fitted(config, splits, seed)[0], splits, config) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


class Killed(Exception):
    pass


@every_method
def test_a_run_killed_in_the_middle_of_an_epoch_goes_on_to_the_same_numbers(name, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "MIDDLE_SECONDS", -1.0)  # saved after each step
    config = make_config("tiny", name, {**SHORT, "train.epochs": 3})
    whole = run.train(config, tmp_path / "whole")

    def killed_in_the_second_epoch(what, done, total):
        if what == "steps" and done > total // 2:
            raise Killed

    with pytest.raises(Killed):
        run.train(config, tmp_path / "parts", killed_in_the_second_epoch)
    assert not list((tmp_path / "parts").glob("tiny/*/[!.]*"))
    resumed = run.train(config, tmp_path / "parts")
    assert resumed.metrics == whole.metrics
    without_time = [[{k: v for k, v in e.items() if "seconds" not in k} for e in r.log] for r in (whole, resumed)]
    assert without_time[0] == without_time[1]
    assert len(resumed.log) == len(whole.log)


@every_method
def test_every_hyper_parameter_has_a_default_and_a_line_and_every_range_an_argument(name):
    kind = methods.get(name)
    options = keyword_options(kind)
    documentation = "\n".join(inspect.getdoc(owner) for owner in (kind, *option_owners(kind)))
    for key, default in options.items():
        assert default is not inspect.Parameter.empty, f"{key} has no default"
        assert f"{key}:" in documentation, f"{key} has no line in the docstring"
    for key in kind.search:
        assert key in options, f"search names {key}, which is no argument"
    assert kind.title
    assert registry.describe("evenlens.methods")[name]["title"] == kind.title  # read without an import
    assert "Source:" in documentation
    assert kind.stage in ("none", "pre", "in", "post", "compress")
    assert set(kind.needs_group) <= {"training", "tuning", "prediction"}


@every_method
def test_the_loss_falls_and_the_gap_is_smaller_than_without_the_method(name):
    settings = {**SHORT, "train.epochs": 4, "train.learning_rate": 3e-3, "data.num": 4000, "data.correlation": 0.8}
    config = plan.complete(make_config("tiny", name, settings))
    splits = splits_of(config)
    method, logs = fitted(config, splits)
    losses = [key for key in logs[0] if "loss" in key]  # of a game against an adversary, one falls
    assert any(logs[-1][key] < logs[0][key] for key in losses) or len(logs) == 1
    claim = methods.get(name).claims
    if claim:
        gap = metrics.get(claim)
        without_it = Method(splits.task, config)
        without_it.load_state_dict(plain(config, splits))
        test = bound(splits.test, config)
        with_method, without = (gap(run.counts_of(run.predict(m, test), test)) for m in (method, without_it))
        better = without - with_method if gap.direction == "lower" else with_method - without
        assert better > 0.2, f"{claim}: {with_method:.3f} against {without:.3f} with cross-entropy alone"


@every_method
def test_renaming_the_groups_changes_nothing_else(name):
    few = {**SHORT, "train.steps": 6, "data.num_groups": 3}  # rounding grows with every step
    config, renamed = (
        plan.complete(make_config("tiny", name, {**few, "data.rename": rename})) for rename in ((0, 1, 2), (2, 0, 1))
    )
    splits, others = splits_of(config), splits_of(renamed)
    assert not torch.equal(splits.train.group, others.train.group)
    method, _ = fitted(config, splits)
    groups = (splits.task.num_groups, splits.task.num_groups * splits.task.num_classes)
    linear = [layer for layer in method.modules() if isinstance(layer, nn.Linear)]
    if any(layer.out_features in groups and layer.weight.requires_grad for layer in linear):
        pytest.skip("weights belong to groups, so they start elsewhere: its own test permutes them")
    again, _ = fitted(renamed, others)
    assert torch.allclose(logits_of(method, splits, config), logits_of(again, others, renamed), atol=1e-3)


@every_method
def test_more_than_two_classes_and_groups_work(name):
    config = config_of(name, num_classes=4, num_groups=3, correlation=0.5)
    splits = splits_of(config)
    method, logs = fitted(config, splits)
    assert logits_of(method, splits, config).shape == (len(splits.test), 4)
    assert all(math.isfinite(value) for log in logs for value in log.values())
