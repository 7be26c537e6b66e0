"""Faults of the kind that published code has, put into a copy of ours: a test has to notice each of them.

A test that passes on a method that does not work is worse than none. Each line below names a file, what to write in
place of what, and the test that must then fail.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import evenlens

SOURCE = Path(evenlens.__file__).parent
ROOT = Path(__file__).parent.parent

FAULTS = {
    "the group is off by one in the number of a cell": (
        "data/dataset.py",
        "return label * self.num_groups + group",
        "return label * self.num_groups + (group + 1) % self.num_groups",
        "tests/test_methods.py::test_the_cell_is_a_bijection_with_the_label_first_for_all_numbers_of_classes_and_groups",
    ),
    "batch norm of frozen networks drifts": (
        "method.py",
        "nn.Module.train(module, False)",
        "nn.Module.train(module, mode)",
        "tests/test_method.py::test_a_frozen_network_stays_in_evaluation_with_its_statistics_and_its_dropout",
    ),
    "weights are those of the transposed table": (
        "methods/upweighting.py",
        "counts = train.cell_counts().flatten().float()",
        "counts = train.cell_counts().T.flatten().float()",
        "tests/test_methods.py::test_the_weights_of_upweighting_are_the_specifications",
    ),
    "group DRO mistakes groups for labels": (
        "methods/group_dro.py",
        "cell = self.task.cell(batch.label, batch.group)",
        "cell = batch.group * self.task.num_classes + batch.label",
        "tests/test_adversarial_and_heads.py",
    ),
    "an image trains the head of the next group": (
        "methods/domain_independent.py",
        "own(self.blocks(batch.image), batch.group)",
        "own(self.blocks(batch.image), (batch.group + 1) % self.task.num_groups)",
        "tests/test_methods.py::test_only_the_block_of_the_own_group_counts_in_loss_and_gradient",
    ),
    "the views of bias mimicking are those of the other class": (
        "methods/bias_mimicking.py",
        "limit = wanted * available[:, :, group, None] // own.clamp(min=1)",
        "limit = available * wanted[:, :, group, None] // own.clamp(min=1)",
        "tests/test_adversarial_and_heads.py::test_the_views_have_the_specifications_sizes",
    ),
    "the second head of bias mimicking moves the network": (
        "methods/bias_mimicking.py",
        "functional.normalize(features.detach()), batch.label",
        "functional.normalize(features), batch.label",
        "tests/test_adversarial_and_heads.py::test_the_second_head_moves_alone_and_only_after_the_epoch",
    ),
    "the adversary never steps": (
        "methods/adversarial.py",
        "                self.adversary_step(features, batch)\n        confusion",
        "                pass\n        confusion",
        "tests/test_adversarial_and_heads.py::test_each_side_moves_in_its_own_turn_alone",
    ),
    "the adversary's passes move the running statistics": (
        "methods/adversarial.py",
        "self.net.eval()",
        "pass",
        "tests/test_adversarial_and_heads.py::test_the_adversarys_passes_leave_the_network_and_its_running_statistics_alone",
    ),
    "the reversed gradient is not reversed": (
        "losses.py",
        "return -ctx.factor * gradient, None",
        "return ctx.factor * gradient, None",
        "tests/test_adversarial_and_heads.py::test_the_reversal_gives_on_what_it_gets_and_turns_the_gradient_round",
    ),
    "the prior is of the group given the label": (
        "methods/bias_contrastive.py",
        "counts.sum(0)",
        "counts.sum(1, keepdim=True)",
        "tests/test_contrastive_and_distillation.py::test_the_prior_is_of_the_label_given_the_group_and_on_asymmetric_tables_too",
    ),
    "contrast with features under no gradient": (
        "methods/bias_contrastive.py",
        "self.net.features(batch.views.image)",
        "self.net.features(batch.views.image).detach()",
        "tests/test_contrastive_and_distillation.py::test_the_contrast_moves_the_features_and_not_the_head",
    ),
    "FLAC with features under no gradient": (
        "methods/flac.py",
        "unit = functional.normalize(features)",
        "unit = functional.normalize(features).detach()",
        "tests/test_contrastive_and_distillation.py::test_flac_reaches_the_encoder_alone_and_leaves_the_bias_capturing_networks_as_they_are",
    ),
    "FLAC picks the pairs that agree with the bias": (
        "losses.py",
        "similarity < threshold, similarity > threshold",
        "similarity > threshold, similarity < threshold",
        "tests/test_contrastive_and_distillation.py::test_the_contradicting_pairs_and_their_divergence_are_the_specifications",
    ),
    "distillation moves the target too": (
        "methods/mmd.py",
        "target = features.detach()",
        "target = features",
        "tests/test_contrastive_and_distillation.py::test_the_teacherless_discrepancy_is_the_formula_with_a_bandwidth_for_each_cell",
    ),
    "FAAP's generator gets no gradient": (
        "methods/faap.py",
        "features, logits = features_and_logits(self.trained, self.changed(batch.image))",
        "features, logits = features_and_logits(self.trained, self.changed(batch.image).detach())",
        "tests/test_last_layer_and_input.py::test_every_trained_parameter_got_a_finite_nonzero_gradient_and_no_other_any",
    ),
    "FAAP's discriminator never steps": (
        "methods/faap.py",
        "self.update(self.optimisers[1], told)",
        "pass",
        "tests/test_last_layer_and_input.py::test_the_discriminators_step_leaves_the_generator_and_the_generators_the_discriminator",
    ),
    "the trigger follows the adversary": (
        "methods/reprogramming.py",
        "- weight * adversary",
        "+ weight * adversary",
        "tests/test_last_layer_and_input.py::test_the_triggers_direction_goes_against_the_adversary_alone_and_is_else_the_utilitys",
    ),
    "FDR's features are those of training mode": (
        "methods/_last_layer.py",
        "self.eval()",
        "self.net.train()",
        "tests/test_last_layer_and_input.py::test_the_features_are_those_of_the_plain_images_in_evaluation_mode",
    ),
    "FDR takes one of the two rates twice": (
        "methods/fdr.py",
        "mean_in(of, p, 1 - own), mean_in(of, 1 - p, own)",
        "mean_in(of, p, 1 - own), mean_in(of, 1 - p, 1 - own)",
        "tests/test_last_layer_and_input.py::test_the_penalties_are_their_formulas_in_value_and_gradient_also_without_some_cells",
    ),
    "the fairness penalty has no gradient": (
        "methods/fairness_penalty.py",
        "mixed = self.joined(rate,",
        "mixed = self.joined(rate.detach(),",
        "tests/test_neighbours.py::test_the_penalty_of_more_classes_and_groups_is_the_formula_in_value_and_gradient",
    ),
    "JTT repeats what the first network gets right": (
        "methods/jtt.py",
        "torch.where(self.wrong.cpu(), self.weight, 1)",
        "torch.where(self.wrong.cpu(), 1, self.weight)",
        "tests/test_neighbours.py::test_the_second_network_sees_errors_as_often_as_they_weigh",
    ),
    "thresholds are those of the other group": (
        "methods/group_thresholds.py",
        "self.offset[group]",
        "self.offset[1 - group]",
        "tests/test_neighbours.py::test_thresholds_keep_the_gap_of_the_true_groups_within_the_tolerance",
    ),
    "importance adds up over the groups": (
        "pruning/scores.py",
        "rows = [total[group] for total in totals]",
        "rows = [total[0] for total in totals]",
        "tests/test_pruning_scores.py",
    ),
    "a group's mean counts batches of the others": (
        "pruning/scores.py",
        "counts[group] += len(batch.label) if pooled else 1",
        "counts[:] = [count + (len(batch.label) if pooled else 1) for count in counts]",
        "tests/test_pruning_scores.py",
    ),
    "the best served group takes the next weight": (
        "pruning/selection.py",
        "if share[group] - target[group] < share[poorest] - target[poorest]:",
        "if share[group] - target[group] > share[poorest] - target[poorest]:",
        "tests/test_pruning_selection.py",
    ),
    "all groups weigh alike in the mean of the buffers": (
        "pruning/constraints.py",
        "torch.where(known, weight, 0.0)",
        "known.float()",
        "tests/test_pruning_objectives.py::test_the_gaps_and_the_multipliers_are_those_of_the_worked_numbers",
    ),
    "pruned weights come back": (
        "pruning/masks.py",
        "return torch.where(self.mask, weight, 0)",
        "return weight",
        "tests/test_pruning_masks.py",
    ),
    "a pruner offers before it is sparse": (
        "methods/_pruner.py",
        "return int(self.rounds_done) == len(self.sparsities)",
        "return True",
        "tests/test_pruning_methods.py::test_the_sparsity_is_exact_in_all_and_nothing_is_offered_before",
    ),
    "running statistics move while weights are scored": (
        "methods/_pruner.py",
        "self.eval()  # no running statistics move while weights are scored",
        "self.train()",
        "tests/test_pruning_methods.py::test_scoring_changes_nothing_in_the_network",
    ),
    "what is deployed is shown the photograph": (
        "viewed.py",
        "return in_eight_bits(self.view(image))",
        "return in_eight_bits(image)",
        "tests/test_drawing.py::test_what_is_deployed_takes_photographs_and_predicts_what_was_tested",
    ),
    "a method that takes the group forgets its view": (
        "viewed.py",
        "return self.inner.predict(batch._replace(image=self.shown(batch.image)))",
        "return self.inner.predict(batch)",
        "tests/test_drawing.py::test_a_method_that_predicts_with_the_group_does_so_behind_its_view",
    ),
    "drawings are kept whatever the options": (
        "data/drawing.py",
        "{views.get(name).version}\\n{settings}",
        "{views.get(name).version}",
        "tests/test_drawing.py::test_an_option_makes_other_drawings_and_another_run",
    ),
    "Weber-DoG forgets the contrast around it": (
        "views/weber_dog.py",
        "divisor = divisor + self.contrast *",
        "divisor = divisor + 0 * self.contrast *",
        "tests/test_views.py::test_weber_dog_is_its_formula",
    ),
    "the largest sum of error and gap is kept": (
        "selecting.py",
        "lower = self.error or metrics.get",
        "lower = not self.error or metrics.get",
        "tests/test_selecting.py",
    ),
    "the sketching study's shares are of all images": (
        "metrics/sketch_study.py",
        "hit, missed = _shares_apart(hits), _shares_apart(images - hits)",
        "hit, missed = _shares_apart(hits), _shares_apart(images)",
        "tests/test_sketch_study.py",
    ),
    "the tone-leak test looks at training images": (
        "tone_leak.py",
        "closely = _look_closely(drawer, _bind(photographs.val, few, looked))",
        "closely = _look_closely(drawer, _bind(photographs.train, few, looked))",
        "tests/test_tone_leak.py::test_exposure_is_the_mean_change_of_the_drawing_and_of_grey",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_makes_a_test_fail(fault, tmp_path):
    file, right, wrong, test = FAULTS[fault]
    shutil.copytree(SOURCE, tmp_path / "evenlens", ignore=shutil.ignore_patterns("__pycache__"))
    text = (tmp_path / "evenlens" / file).read_text()
    assert text.count(right) == 1, f"{file} has no single '{right}' any more: write the fault anew"
    (tmp_path / "evenlens" / file).write_text(text.replace(right, wrong))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "t")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run([*command, test], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1, f"{test} did not notice:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
