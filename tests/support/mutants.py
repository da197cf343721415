"""Mutants of the whole library: small changes that make a number wrong, and the tests that must fail for each.

``make test-mutants`` applies them one at a time to a copy of the checkout and runs the named tests, which belong to the
usual suite. The mutants of the samplers' laws that stand in tests/inference are applied in memory by these tests
themselves.
"""

from typing import NamedTuple


class Mutant(NamedTuple):
    """A change of one expression.

    Attributes
    ----------
    file : str
        The module, relative to the root of the checkout.
    old, new : str
        ``old``, which occurs exactly once in the file, is replaced by ``new``.
    tests : tuple of str
        The tests of which at least one must fail.
    """

    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def of(file: str, *changes: tuple[str, ...]) -> tuple[Mutant, ...]:
    """Return the mutants of one module from tuples (old, new, test, further tests)."""
    return tuple(
        Mutant(f"bdlbench/{file}", old, new, tuple(f"tests/{t}" for t in tests)) for old, new, *tests in changes
    )


RECOMPUTED = "runs/test_recomputed.py"
REGRESSION, CLASSIFICATION = f"{RECOMPUTED}::test_a_regression", f"{RECOMPUTED}::test_a_classification"
PRICE = f"{RECOMPUTED}::test_the_price_of_a_classification"
TALLY, WARNINGS = "runs/test_tally.py", "runs/test_warnings.py"
CHARGED = "sampling/test_sample.py::test_a_step_is_charged_the_densities_that_it_evaluates"
SCHEDULES = "inference/test_schedules.py"
TEMPERATURE = "inference/test_stationarity.py::test_theta_is_where_the_gradient_was_taken"
CRPS = "metrics/test_predictive.py::test_crps_is_the_closed_form_of_scoringrules"
MIXTURE = "metrics/test_mixture.py"
CALIBRATION = "metrics/test_calibration.py"
ARVIZ = "metrics/test_mixing.py::test_each_column_has_the_numbers_of_arviz[smooth-2-50]"
UNCERTAINTY = "metrics/test_uncertainty.py"
SPLITS = "data/test_splits.py"
TABLES = "report/test_tables.py"
FIDELITY, CERTIFICATE = "metrics/test_fidelity.py", "evaluation/test_certificate.py"
FIT = "api/test_fit.py"

MUTANTS: dict[str, tuple[Mutant, ...]] = {
    "units and signs of scores": (
        *of(
            "baselines/linear_models.py",
            (
                "noise * (1 + leverage)",
                "noise * leverage",
                "baselines/test_methods.py::test_least_squares_is_the_posterior_predictive_of_the_normal_linear_model",
            ),
            ("as_table(x) - centre", "as_table(x)", "baselines/test_methods.py::test_ridge_maximises_the_evidence"),
            ("C=1 / penalty", "C=penalty", "baselines/test_methods.py::test_logistic_regression_is_a_mode"),
        ),
        *of(
            "baselines/gaussian_processes.py",
            (
                "normalize_y=True",
                "normalize_y=False",
                "baselines/test_methods.py::test_the_gaussian_process_is_that_of_a_cholesky_factor",
            ),
        ),
        *of(
            "baselines/temperature_scaling.py",
            (
                "mean(own - np",
                "mean(np.abs(own) - np",
                "baselines/test_methods.py::test_the_temperature_has_no_slope_and_recovers_a_known_one",
            ),
        ),
        *of(
            "baselines/predictives.py",
            (
                "inside / (len(self.errors) + 1)",
                "inside / len(self.errors)",
                "baselines/test_predictives.py::test_the_conformal_guarantee",
            ),
            (
                "(df + z**2) / (df - 1) - spread",
                "(df + z**2) / df - spread",
                "baselines/test_predictives.py::test_crps_and_density_are_those_of_libraries",
            ),
        ),
        *of(
            "runs/baselines.py",
            ('"warmup": price', '"warmup": 0.0', "baselines/test_runs.py::test_a_run_is_stored_scored_and_found"),
        ),
        *of(
            "metrics/decisions.py",
            ("probs @ table", "probs @ table.T", "metrics/test_decisions.py::test_each_row_takes_its_bayes_decision"),
            ("> referral, referral", ">= referral, referral", "metrics/test_decisions.py::test_ties"),
        ),
        *of(
            "runs/scores.py",
            ("known, unknown = inside", "unknown, known = inside", REGRESSION),
            ("y = dataset.shifted[place].y", "y = dataset.test.y", REGRESSION),
            (
                "scores(metrics, mixture, dataset, y), mixture, y)",
                "scores(metrics, mixture, dataset, y), own, y)",
                REGRESSION,
            ),
            (
                "return evaluate(forms_of(metrics, mixture), original(y, dataset), ingredients(mixture, dataset))",
                "return evaluate(metrics, y, ingredients(mixture, dataset))",
                REGRESSION,
            ),
            ('"entropy_of_mean" if', '"mean_entropy" if', CLASSIFICATION),
            ('else "model_variance"', 'else "variance"', f"{TALLY}::test_what_is_unknown_is_the_variance_of_the_mean"),
        ),
        *of(
            "runs/storage.py",
            ("- math.log(scale)", "+ math.log(scale)", REGRESSION),
            ("return scale, loc", "return scale, 0.0", REGRESSION),
            ('(("mean", "mean"), ("y", "sample"))', '(("mean", "sample"), ("y", "mean"))', REGRESSION),
            ("np.repeat(values, look.population, 0)", "np.tile(values, (look.population, 1))", "runs/test_storage.py"),
        ),
        *of(
            "metrics/mixture.py",
            (
                "out[name] - np.log(scale)",
                "out[name] + np.log(scale)",
                f"{MIXTURE}::test_original_units_equal_a_mixture_in_original_units",
            ),
            (
                "out[name] * scale**2",
                "out[name] * scale",
                f"{MIXTURE}::test_original_units_equal_a_mixture_in_original_units",
            ),
            (
                "self._squares / self.num_draws",
                "self._squares / (self.num_draws - 1)",
                f"{MIXTURE}::test_regression_stream_equals_batch",
            ),
        ),
        *of(
            "runs/record.py",
            ('"test": len(test.y)}', '"test": len(dataset.train.y)}', PRICE),
            ('"num_draws": tally.num_draws', '"num_draws": tally.drawn', REGRESSION),
        ),
    ),
    "predictions": (
        *of(
            "sampling/predictions.py",
            ("x, f + change)", "x, f + 2 * change)", "sampling/test_linearised.py"),
            ("(theta - anchor,)", "(anchor - theta,)", "sampling/test_linearised.py"),
            (
                "if anchor is None else linearised(target, anchor, theta, x)",
                "if anchor is None or True else linearised(target, anchor, theta, x)",
                f"{FIT}::test_laplace_predicts_linearised_and_warns_of_its_params",
            ),
            (
                'out["variance"] = jnp.broadcast_to(p.variance,',
                'out["variance"] = jnp.broadcast_to(p.variance**0.5,',
                REGRESSION,
            ),
            ('out["cdf"] = p.cdf(y)', 'out["cdf"] = 1 - p.cdf(y / 2)', REGRESSION),
            (
                "[1 - probs, probs]",
                "[probs, 1 - probs]",
                "sampling/test_linearised.py::test_probabilities_of_two_classes_are_in_the_order_of_the_labels",
            ),
            (
                "first *= draws.shape[2] if draws.ndim == 4 else 1",
                "first *= 1",
                "sampling/test_predictive_keys.py::test_every_draw_of_y_has_noise_of_its_own[svgd]",
                "sampling/test_linearised.py",
            ),
        ),
        *of(
            "runs/look.py",
            (
                "self.shown.T.reshape(-1)",
                "self.shown.reshape(-1)",
                f"{TALLY}::test_only_the_draws_of_good_chains_are_pooled",
            ),
            (
                "np.swapaxes(split, 1, 2).reshape(-1, split",
                "split.reshape(-1, split",
                f"{TALLY}::test_particles_are_followed_through_the_draws",
            ),
        ),
    ),
    "diagnostics that are reported": (
        *of(
            "runs/storage.py",
            ('"rhat_max": max}', '"rhat_max": min}', "runs/test_storage.py"),
            (
                'wanted = [("log_likelihood_test", "y"), ("predictions", "probs")]',
                'wanted = [("predictions", "probs")]',
                "runs/test_storage.py",
            ),
            ('[] if "mean" in absent else [("predictions", "mean")]', "[]", "runs/test_storage.py"),
            ("self.dataset.test.y[:rows]] = -1.0", "self.dataset.test.y[:rows]] = 2.0", CLASSIFICATION),
        ),
        *of(
            "metrics/diagnostics.py",
            ("np.concatenate(rhat).max()", "np.concatenate(rhat).min()", REGRESSION),
            (
                "array_stats.psislw(-ratios)",
                "array_stats.psislw(ratios)",
                "metrics/test_diagnostics.py::test_khat_finds_the_shape_of_pareto_ratios",
            ),
        ),
        *of(
            "runs/diagnosis.py",
            ("e_bfmi(moving).min()", "e_bfmi(moving).max()", f"{WARNINGS}::test_energy"),
            ("else value * wanted", "else value", f"{WARNINGS}::test_configurational_temperature"),
            (
                "tally.population * schedule.num_chains",
                "schedule.num_chains",
                f"{WARNINGS}::test_divergences_of_a_population",
            ),
        ),
        *of(
            "runs/tally.py",
            (
                "return max(psis_khat(ratios)",
                "return min(psis_khat(ratios)",
                f"{TALLY}::test_the_largest_khat_of_the_chains_counts",
            ),
            (
                'astype(np.float64) - look.stats["log_q"]',
                'astype(np.float64) + look.stats["log_q"]',
                f"{TALLY}::test_the_largest_khat_of_the_chains_counts",
            ),
            ("c // self.population not in self.bad", "c % self.population not in self.bad", TALLY),
        ),
    ),
    "draws and steps that count": (
        *of("runs/look.py", ("[::-1] - 1", "[::-1]", f"{TALLY}::test_draws_after_a_bad_step_do_not_count")),
        *of(
            "sampling/programs.py",
            (
                "slot = jnp.minimum(i // stride,",
                "slot = jnp.minimum((i + 1) // stride,",
                "sampling/test_invariance.py::test_more_draws_begin_with_the_same_ones",
            ),
            (
                "jnp.where(finite, NEVER, t0 + i)",
                "jnp.where(finite, NEVER, t0 + i + 1)",
                "sampling/test_invariance.py::test_the_first_bad_step_is_the_first",
            ),
            (
                "value / stride",
                "value",
                "inference/test_stationarity.py::test_it_is_the_temperature_of_the_recursions_own_law[sgld]",
            ),
        ),
        *of(
            "sampling/loop.py",
            ("(0 if warm else num_warmup)", "0", f"{SCHEDULES}::test_draws_come_from_every_cycle"),
        ),
        *of(
            "inference/hmc.py",
            ('"energy": state.energy', '"energy": state.potential_energy', REGRESSION),
            ('"log_density": -state.potential_energy', '"log_density": state.potential_energy', REGRESSION),
            (
                ">= 2**max_tree_depth - 1",
                "> 2**max_tree_depth - 1",
                "inference/test_hmc.py::test_nuts_says_which_draws_reached_its_depth",
            ),
        ),
    ),
    "what a step is charged": (
        *of(
            "sampling/programs.py",
            ("self.share = (self.schedule.batch_size or self.num_rows) / total", "self.share = 1.0", PRICE),
            (
                'jnp.where(alive, jnp.asarray(info["num_grads"], jnp.float32), 0)',
                'jnp.asarray(info["num_grads"], jnp.float32)',
                "sampling/test_invariance.py::test_steps_after_the_first_bad_one_cost_nothing",
            ),
        ),
        *of(
            "runs/tally.py",
            (
                'phase = block.phase if last else "warmup"',
                "phase = block.phase",
                f"{TALLY}::test_gradients_of_earlier_stages_are_those_of_warm_up",
            ),
            (
                "(block.num_grads * num_rows)[alive].sum()",
                "(block.num_grads * num_rows).sum()",
                f"{TALLY}::test_gradients_of_earlier_stages_are_those_of_warm_up",
            ),
        ),
        *of("runs/member.py", ("rows / len(self.job.dataset.train.y)", "rows / self.job.num_chains", PRICE)),
        *of("inference/mclmc.py", ('"num_grads": jnp.float32(2)', '"num_grads": jnp.float32(1)', f"{CHARGED}[mclmc]")),
        *of(
            "inference/adjusted_mclmc.py",
            ('"num_grads": 2.0 * num_steps', '"num_grads": 1.0 * num_steps', f"{CHARGED}[adjusted_mclmc]"),
        ),
        *of(
            "inference/chees.py",
            ("jnp.float32(num_particles) * num_steps", "jnp.float32(1) * num_steps", f"{CHARGED}[chees]"),
        ),
        *of(
            "inference/smc.py",
            (
                "jnp.float32(num_particles) * (num_steps + 2)",
                "jnp.float32(num_particles) * num_steps",
                f"{CHARGED}[smc]",
            ),
        ),
        *of(
            "inference/svi.py",
            ('"num_grads": jnp.float32(num_particles)', '"num_grads": jnp.float32(1)', f"{CHARGED}[svi]"),
        ),
    ),
    "objectives and targets": (
        *of(
            "types.py",
            (
                "return self.size / per_row.shape[0] * per_row.sum()",
                "return per_row.sum()",
                "inference/test_sgld.py::test_control_variates_are_exact_at_the_anchor",
                "model/test_target.py",
            ),
            (
                "return (self.weights * per_row).sum()",
                "return per_row.sum()",
                "sampling/test_sample.py::test_a_weight_is_a_number_of_equal_rows[laplace]",
            ),
        ),
        *of(
            "sampling/programs.py",
            (
                "together.weights * (count / size)",
                "together.weights",
                "sampling/test_sample.py::test_rows_of_weight_zero_are_not_there[sgld]",
            ),
        ),
        *of(
            "model/target.py",
            ("log_jacobian = log_jacobian + transform", "log_jacobian = log_jacobian - transform", REGRESSION),
        ),
    ),
    "methods": (
        *of(
            "inference/hmc.py",
            (
                "reached = trajectory_length > longest",
                "reached = trajectory_length < longest",
                "inference/test_hmc.py::test_hmc_cut_short_is_exact",
            ),
        ),
        *of(
            "inference/adjusted_mclmc.py",
            (
                "- begun.logdensity - kinetic_change",
                "- begun.logdensity + kinetic_change",
                "inference/test_adjusted_mclmc.py::TestLaws::test_a_preset_obeys_its_law[adjusted_mclmc]",
            ),
        ),
        *of(
            "inference/chees.py",
            (
                "theta + init_scale * spread",
                "theta - 0 * spread",
                "inference/test_chees.py::test_particles_begin_around_theta",
            ),
        ),
        *of(
            "inference/ivon.py",
            (
                "return 1 / jnp.sqrt(state.size * state.hessian)",
                "return 1 / jnp.sqrt(state.hessian)",
                "inference/test_ivon.py::test_ivon_log_q_is_the_density_of_the_draw",
            ),
        ),
        *of(
            "inference/laplace.py",
            (
                "data, diagonal) / target.temperature",
                "data, diagonal)",
                "inference/test_laplace.py::test_laplace_is_exact_on_a_linear_network[2.0]",
            ),
        ),
        *of(
            "inference/curvature.py",
            (
                "jnp.array([1.0, 2.0**0.5], eta.dtype)",
                "jnp.array([1.0, 1.0], eta.dtype)",
                "inference/test_laplace.py::test_the_precision_is_the_expected_hessian[learned]",
            ),
        ),
        *of(
            "inference/mclmc.py",
            (
                "kinetic_change - moved.logdensity + chain.logdensity",
                "kinetic_change + moved.logdensity - chain.logdensity",
                "inference/test_mclmc.py::test_a_step_is_the_written_one_and_blackjaxs",
            ),
        ),
        *of(
            "inference/point.py",
            (
                "        log_density, grad = target.value_and_grad(state.theta, data)\n        loss_grad = jax.lax.optimization_barrier(-grad / data.size)",
                "        log_density, grad = target.value_and_grad(state.theta, data)\n        loss_grad = jax.lax.optimization_barrier(-grad)",
                "inference/test_point.py::test_map_is_the_plain_optimiser",
            ),
            (
                "return data.total(target.terms(theta, data).log_lik)",
                "return target.terms(theta, data).log_lik.sum()",
                "inference/test_point.py::test_a_batch_of_an_ensemble_stands_for_all_rows",
            ),
            (
                "value = _objective(target, objective)\n    stopping",
                'value = _objective(target, "likelihood")\n    stopping',
                "inference/test_point.py::test_a_member_reaches_its_closed_form",
            ),
            (
                "(count,)).astype(theta.dtype) / (1 - rate)",
                "(count,)).astype(theta.dtype)",
                "inference/test_point.py::test_a_draw_of_dropout_is_the_network_with_units_left_out",
            ),
            (
                "better = score > best.score",
                "better = score < best.score",
                "inference/test_point.py::test_early_stopping_keeps_the_best_theta",
            ),
        ),
        *of(
            "inference/schedules.py",
            (
                "return lambda t: factor(t % length)",
                "return lambda t: factor(t)",
                f"{SCHEDULES}::test_draws_come_from_every_cycle",
            ),
        ),
        *of(
            "inference/sgld.py",
            (
                "        eps = schedules.at(step_size, t) * (1 + t / decay_steps) ** -decay",
                "        eps = schedules.at(step_size, t) * (1 + t / decay_steps) ** decay",
                "inference/test_sgld.py::test_sgld_decays_as_it_says",
            ),
            (
                "((grad / data.size) ** 2 - state.second_moment)",
                "(grad**2 - state.second_moment)",
                "inference/test_sgld.py::test_psgld_without_noise_is_rmsprop",
            ),
            (
                "state.anchor_grad + grad - target",
                "state.anchor_grad + grad + target",
                "inference/test_sgld.py::test_control_variates_are_exact_at_the_anchor",
            ),
            (
                "        eps = step_size * factor(t)\n",
                "        eps = step_size * factor(t) / 2\n",
                f"{SCHEDULES}::test_draws_come_from_every_cycle",
            ),
        ),
        *of(
            "inference/sghmc.py",
            (
                "        theta, momentum = _drift(state, h, 1 - h * friction)",
                "        theta, momentum = _drift(state, h, 1 + h * friction)",
                f"{SCHEDULES}::test_the_path_is_that_of_the_recursion_at_each_step[sghmc]",
            ),
            (
                "momentum = state.momentum + h * grad",
                "momentum = state.momentum + h / 2 * grad",
                f"{SCHEDULES}::test_the_path_is_that_of_the_recursion_at_each_step[baoa]",
            ),
            (
                "(jnp.mean(momentum**2) - 1)",
                "(1 - jnp.mean(momentum**2))",
                "inference/test_sghmc.py::test_the_trajectory_of_sgnht_is_blackjaxs",
            ),
            (
                "h = step_size * jnp.sqrt(factor(t))",
                "h = step_size * factor(t)",
                f"{SCHEDULES}::test_draws_come_from_every_cycle",
            ),
        ),
        *of(
            "inference/smc.py",
            (
                "(1 - at) * log_prior(theta, data) + at",
                "log_prior(theta, data) + at",
                "inference/test_smc.py::test_the_parts_of_a_log_density_add_up",
                "inference/test_smc.py::test_smc_finds_the_evidence",
            ),
        ),
        *of(
            "inference/stationarity.py", ("return -jnp.vdot(theta, grad)", "return jnp.vdot(theta, grad)", TEMPERATURE)
        ),
        *of(
            "inference/svgd.py",
            (
                "repulsion = 2 / bandwidth",
                "repulsion = 1 / bandwidth",
                "inference/test_svgd.py::test_svgd_moves_along_the_stein_direction",
            ),
        ),
        *of(
            "inference/svi.py",
            (
                "return log_q.sum() - target.log_density(theta, data)",
                "return -target.log_density(theta, data)",
                "inference/test_svi.py::TestLaws::test_a_preset_obeys_its_law[svi]",
            ),
        ),
        *of(
            "inference/swag.py",
            ("-grad / data.size", "-grad", "inference/test_swag.py::test_swag_keeps_the_moments_of_the_path"),
        ),
    ),
    "metrics": (
        *of(
            "metrics/predictive.py",
            ("(error - distance / 2).mean()", "(error - distance).mean()", CRPS),
            (
                "return float(batches.std(ddof=1) / np.sqrt(len(batches)))",
                "return float(batches.std(ddof=1))",
                "metrics/test_predictive.py::test_a_standard_error_is_that_of_a_mean",
            ),
            ("- 2 * hit + 1))", "- hit + 1))", "metrics/test_predictive.py::test_brier_sums_over_classes"),
        ),
        *of(
            "metrics/calibration.py",
            (
                '<= fraction("level", level) / 2',
                '<= fraction("level", level)',
                f"{CALIBRATION}::test_coverage_includes_both_ends",
            ),
            (
                "2 / (1 - level) * missed",
                "1 / (1 - level) * missed",
                f"{CALIBRATION}::test_interval_score_is_that_of_scoringrules",
            ),
            (
                "mixture_quantile(loc, scale, (1 + level) / 2)",
                "mixture_quantile(loc, scale, level)",
                f"{CALIBRATION}::test_interval_of_one_gaussian",
            ),
        ),
        *of(
            "metrics/mixing.py",
            ("between / within + draws - 1", "between / within + draws", ARVIZ),
            ("tau = -1 + 2 * summed", "tau = 2 * summed", ARVIZ),
        ),
        *of(
            "metrics/uncertainty.py",
            ("[true_rate >= 0.95]", "[true_rate >= 0.9]", f"{UNCERTAINTY}::test_ood_fpr95_by_hand"),
            ("model / (noise + model)", "noise / (noise + model)", f"{UNCERTAINTY}::test_model_variance_share_by_hand"),
        ),
    ),
    "data": (
        *of(
            "data/dataset.py",
            (
                "return np.asarray(self.loc + self.scale * np",
                "return np.asarray(self.scale * np",
                f"{SPLITS}::test_scalers_see_no_test_row",
                REGRESSION,
            ),
            (
                "values.std(axis=0))\n",
                "values.std(axis=0, ddof=1))\n",
                f"{SPLITS}::test_scalers_see_no_test_row",
                REGRESSION,
            ),
            (
                'fitted_x = _fit(parts["train"][0], feature_names)',
                "fitted_x = _fit(np.concatenate([x for x, _ in parts.values()]), feature_names)",
                f"{SPLITS}::test_scalers_see_no_test_row",
            ),
        ),
        *of(
            "data/splits.py",
            (
                "return Split(train, validation, order[num_fit:])",
                "return Split(train, validation, order[num_fit - 1 :])",
                f"{SPLITS}::test_parts_cover_all_rows_once",
            ),
            (
                "for _ in range(split):",
                "for _ in range(split + 1):",
                f"{SPLITS}::test_permutation_is_the_successive_choice",
            ),
        ),
        *of(
            "sampling/batches.py",
            (
                "(order[:-count], order[-count:])",
                "(order[count:], order[-count:])",
                "inference/test_point.py::test_rows_held_out_are_never_trained_on",
            ),
        ),
    ),
    "store": of(
        "store/arrays.py",
        (
            "* variable.packing[0] + variable.packing[1]",
            "* variable.packing[0]",
            "store/test_arrays.py::test_packed_numbers_are_read_in_their_units",
        ),
    ),
    "tables": (
        *of(
            "metrics/resampling.py",
            (
                "math.sqrt(1 / num_splits + rho / (1 - rho))",
                "math.sqrt(1 / num_splits)",
                f"{TABLES}::test_aggregate_corrects_for_overlapping_splits",
            ),
        ),
        *of(
            "report/tables.py",
            (
                'size["test"] / size["train"]',
                'size["test"] / (size["train"] + size["test"])',
                f"{TABLES}::test_aggregate_corrects_for_overlapping_splits",
            ),
            (
                '_worst(min, [record["metrics"].get("ess_bulk_min")',
                '_worst(max, [record["metrics"].get("ess_bulk_min")',
                f"{TABLES}::test_aggregate_over_splits",
            ),
        ),
    ),
    "evaluation": (
        *of(
            "metrics/fidelity.py",
            (
                "bias=_bias(energy.of_pairs_apart(over)",
                "bias=_bias(energy.of_all_pairs(over)",
                f"{FIDELITY}::test_worth_and_bias_are_those_of_the_two_estimators",
            ),
            (
                "positive = squared > spread / ceiling",
                "positive = squared > 0",
                f"{FIDELITY}::test_worth_and_bias_are_those_of_the_two_estimators",
            ),
            (
                "w1_floor=float(np.sqrt(2 / np.pi)",
                "w1_floor=float(np.sqrt(1 / np.pi)",
                f"{FIDELITY}::test_w1_is_scipys_and_its_floor_that_of_exact_draws",
            ),
        ),
        *of(
            "metrics/energy.py",
            (
                "(size * (size - 1))",
                "(size * size)",
                f"{FIDELITY}::test_worth_and_bias_are_those_of_the_two_estimators",
            ),
        ),
        *of(
            "evaluation/certificate.py",
            (
                "rhat < thresholds.rhat)",
                "rhat < 2 * thresholds.rhat)",
                f"{CERTIFICATE}::test_few_chains_divergences_and_low_energy_information_fail",
            ),
            (
                "least > thresholds.e_bfmi)",
                "least < thresholds.e_bfmi)",
                f"{CERTIFICATE}::test_few_chains_divergences_and_low_energy_information_fail",
            ),
            (
                "bool(figure >= threshold)",
                "bool(figure > threshold)",
                f"{CERTIFICATE}::test_few_chains_divergences_and_low_energy_information_fail",
            ),
        ),
        *of(
            "evaluation/verdicts.py",
            (
                "(one.mean - delta) / scale",
                "(one.mean + delta) / scale",
                "evaluation/test_verdicts.py::test_verdict_on_one_set_is_students_t",
            ),
        ),
    ),
    "predictions of the api": (
        *of(
            "api/prediction.py",
            (
                "np.log(len(log_lik)) - jacobian",
                "np.log(len(log_lik)) + jacobian",
                f"{FIT}::test_log_prob_integrates_to_one",
            ),
            (
                "return self.means.var(axis=0)",
                "return self.means.var(axis=0, ddof=1)",
                f"{FIT}::test_variance_splits_and_quantiles_are_of_the_mixture",
            ),
            (
                "np.square(self._targets.loc_scale[1])",
                "np.asarray(self._targets.loc_scale[1])",
                f"{FIT}::test_log_prob_integrates_to_one",
                f"{FIT}::test_prediction_has_the_units_of_the_caller",
            ),
            (
                "return np.maximum(self.entropy - self.noise_entropy, 0.0)",
                "return np.maximum(self.noise_entropy - self.entropy, 0.0)",
                f"{FIT}::test_classes_are_the_callers",
            ),
        ),
        *of(
            "evaluation/predictive.py",
            (
                'found["variance"].astype(np.float64) * scale**2',
                'found["variance"].astype(np.float64) * scale',
                "evaluation/test_predictive.py::test_predictions_at_the_test_rows_are_those_the_run_stored",
            ),
        ),
    ),
}
