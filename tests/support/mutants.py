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


RECOMPUTED = "runs/test_recomputed.py::test_a_regression"
CLASSES = "runs/test_recomputed.py::test_a_classification"
TALLY = "runs/test_tally.py"
WARNINGS = "runs/test_warnings.py"
CHARGED = "sampling/test_invariance.py::test_gradients_are_charged"
PREDICTIVE = "metrics/test_predictive.py"
CALIBRATION = "metrics/test_calibration.py"
FIDELITY = "evaluation/test_fidelity.py"
API = "api/test_fit.py"

MUTANTS: dict[str, tuple[Mutant, ...]] = {
    "scores and their units": (
        *of(
            "runs/scores.py",
            ("known, unknown = inside", "unknown, known = inside", RECOMPUTED),
            ("y = dataset.shifted[place].y", "y = dataset.test.y", RECOMPUTED),
            (
                "scores(metrics, mixture, dataset, y), mixture, y)",
                "scores(metrics, mixture, dataset, y), own, y)",
                RECOMPUTED,
            ),
            ("return evaluate(metrics, original(y, dataset), here)", "return evaluate(metrics, y, here)", RECOMPUTED),
        ),
        *of(
            "runs/storage.py",
            ("- math.log(scale)", "+ math.log(scale)", RECOMPUTED),
            ("(float(scaler.scale), float(scaler.loc))", "(float(scaler.scale), 0.0)", RECOMPUTED),
        ),
        *of(
            "metrics/mixture.py",
            (
                'out["lpd"] - np.log(scale)',
                'out["lpd"] + np.log(scale)',
                "metrics/test_mixture.py::test_original_units_equal_a_mixture_in_original_units",
            ),
            (
                "out[name] * scale**2",
                "out[name] * scale",
                "metrics/test_mixture.py::test_original_units_equal_a_mixture_in_original_units",
            ),
        ),
    ),
    "predictions": (
        *of(
            "sampling/predictions.py",
            (
                "x, f + change)",
                "x, f + 2 * change)",
                f"{API}::test_laplace_predicts_linearised_and_warns_of_its_params",
            ),
            (
                "(theta - anchor,)",
                "(anchor - theta,)",
                f"{API}::test_laplace_predicts_linearised_and_warns_of_its_params",
            ),
            ("jnp.broadcast_to(p.variance, jnp.shape(y))", "jnp.broadcast_to(p.stddev, jnp.shape(y))", RECOMPUTED),
            ('out["cdf"] = p.cdf(y)', 'out["cdf"] = 1 - p.cdf(y)', RECOMPUTED),
            ("[1 - probs, probs]", "[probs, 1 - probs]", "model/test_models_of_users.py"),
        ),
    ),
    "diagnostics": (
        *of(
            "runs/storage.py",
            ('"rhat_max": max}', '"rhat_max": min}', f"{WARNINGS}::test_diagnostics"),
            (
                'wanted = [("log_likelihood_test", "y"), ("predictions", "probs")]',
                'wanted = [("predictions", "probs")]',
                f"{WARNINGS}::test_diagnostics",
            ),
            ('[] if "mean" in absent else [("predictions", "mean")]', "[]", f"{WARNINGS}::test_diagnostics"),
        ),
    ),
    "draws that count": of(
        "runs/look.py",
        ("[::-1] - 1", "[::-1]", TALLY),
    ),
    "what a step is charged": of(
        "sampling/programs.py",
        ("self.share = (self.schedule.batch_size or self.num_rows) / total", "self.share = 1.0", CHARGED),
    ),
    "metrics": (
        *of(
            "metrics/predictive.py",
            (
                "(error - distance / 2).mean()",
                "(error - distance).mean()",
                PREDICTIVE + "::test_crps_is_the_closed_form_of_scoringrules",
            ),
        ),
    ),
}
