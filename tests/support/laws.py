"""The laws that presets must obey, and the tests of these laws, which the test file of each family inherits.

Each preset runs from its yaml on a Bayesian linear regression (a network of one dense layer) with known posterior. Its
draws are compared with the law that is declared for it: the posterior itself, the law of its recursion, its variational
optimum, or the mode. Two further lanes have rows with NaN.

A file ``tests/inference/test_<family>.py`` declares ``class TestLaws(PresetLaws)`` with the laws and the mutants of the
presets whose factories are in ``bdlbench/inference/<family>.py``. Tests of all presets read these classes too.
"""

import ast
import functools
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
import yaml
from known_posteriors import Gaussian, Outcome, Verdict, linear_job, moments, sample
from mutation import mutate

from bdlbench.runs.arrangement import arrange
from bdlbench.runs.configuration import conf_dir, target_of
from bdlbench.sampling import loop
from bdlbench.sampling.programs import NEVER, Shared

FOLDER = Path(__file__).parents[1] / "inference"
POISONED = 2
"""The number of lanes whose data have NaN."""


class Run(NamedTuple):
    """The input of a verdict: the problem, the schedule, and the draws and statistics of the lanes without NaN."""

    problem: Gaussian
    schedule: Any
    drawn: Outcome


class Law(NamedTuple):
    """The law of a preset.

    Attributes
    ----------
    kind : str
        The law in words.
    deterministic : str
        The name of the test of what holds exactly, without statistics: a function of the same file, or
        ``file.py::function`` of another file in tests/inference.
    chains : int
        The number of lanes without NaN.
    options : tuple of str
        Overrides that make the run short.
    verdict : (Run) -> Verdict
        The test of the run.
    """

    kind: str
    deterministic: str
    chains: int
    options: tuple[str, ...]
    verdict: Callable[[Run], Verdict]


class Mutant(NamedTuple):
    """A change of one expression of a family's module: ``old``, which occurs exactly once, is replaced by ``new``.

    With ``within``, only the text of that function is searched.
    """

    old: str
    new: str
    within: str | None = None


# ---- options of a run


def schedule(num_warmup: int, num_samples: int, thinning: int, batch_size: int | None = None) -> str:
    """Return an override of the last stage's schedule. Batches are drawn with replacement, which gives a simple law."""
    size = "null" if batch_size is None else batch_size
    return (
        f"inference.schedule={{num_warmup: {num_warmup}, num_samples: {num_samples}, thinning: {thinning}, "
        f"batch_size: {size}, batching: iid}}"
    )


def falling(rate: float, steps: int, name: str = "optax.adam") -> str:
    """Return an optimiser whose rate falls to 0, so that its noise is small compared with the spread of the draws."""
    decay = f"{{_target_: optax.cosine_decay_schedule, init_value: {rate}, decay_steps: {steps}}}"
    return f"inference.optimizer={{_target_: {name}, learning_rate: {decay}}}"


def mode(steps: int) -> str:
    """Return a MAP stage that converges up to rounding: errors fall as exp(-steps rate curvature)."""
    descent = "{_target_: optax.sgd, learning_rate: 0.1}"
    plan = f"{{num_warmup: {steps}, num_samples: 0, thinning: 0}}"
    return (
        "inference.before=[{_target_: bdlbench.inference.point.maximum_a_posteriori, "
        f"optimizer: {descent}, schedule: {plan}}}]"
    )


ALONE = ("inference.before=[]", "inference.start=prior")


# ---- verdicts


def posterior(run: Run) -> Verdict:
    """Test all first and second moments against the posterior. The particles of a lane are pooled."""
    draws = run.drawn.draws.reshape(len(run.drawn.draws), -1, run.problem.x.shape[1])
    return moments(draws, run.problem.mean, run.problem.cov)


def mean_field(run: Run) -> Verdict:
    """Test the mean-field optimum: the posterior mean, and independent normals with variances 1 / diag(precision)."""
    return moments(run.drawn.draws, run.problem.mean, np.diag(1 / np.diag(run.problem.precision)))


def of_its_own(check: Callable[[], Verdict]) -> Callable[[Run], Verdict]:
    """Make the verdict of a law that is tested on another problem than the run."""
    return lambda run: check()


# ---- the tests


def module_of(preset: str) -> tuple[str, str]:
    """Return the module and the name of a preset's factory."""
    module, name = yaml.safe_load((conf_dir() / "inference" / f"{preset}.yaml").read_text())["_target_"].rsplit(".", 1)
    return module, name


class PresetLaws:
    """The tests of the presets of one family. The subclass in the family's file must be named ``TestLaws``.

    Attributes
    ----------
    laws : dict
        The law of each preset of the family. The first runs in ``make test-quick`` and ``make test``, the others only
        with the slow tests.
    mutants : dict
        For at least one preset a change of its module with which the test of the law must fail.
    everyday : tuple of str
        The mutants that ``make test`` runs. The others are slow tests.
    small : dict
        Options for a preset that make short runs cheaper, or possible, in tests of all presets.
    zero, not_zero : dict
        Numbers of a factory that may be zero although others may not, or must not be zero although others may be (see
        test_every_number).
    refuses : dict
        Tasks of test_every_task that a preset refuses, each with a part of the message.
    """

    laws: ClassVar[Mapping[str, Law]] = {}
    mutants: ClassVar[Mapping[str, Mutant]] = {}
    everyday: ClassVar[tuple[str, ...]] = ()
    small: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    zero: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    not_zero: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    refuses: ClassVar[Mapping[tuple[str, str], str]] = {}

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Parametrise the tests: one for each law, and one for each mutant."""
        if "preset" in metafunc.fixturenames:
            first = next(iter(self.laws))
            marks = {name: pytest.mark.quick if name == first else pytest.mark.slow for name in self.laws}
            metafunc.parametrize("preset", [pytest.param(name, marks=marks[name]) for name in self.laws])
        if "changed" in metafunc.fixturenames:
            marks = {name: () if name in self.everyday else pytest.mark.slow for name in self.mutants}
            metafunc.parametrize("changed", [pytest.param(name, marks=marks[name]) for name in self.mutants])

    def measure(
        self, preset: str, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> tuple[Verdict, np.ndarray, np.ndarray]:
        """Return the verdict on the lanes without NaN, and for all lanes the first bad step and whether a draw is bad."""
        law = self.laws[preset]
        monkeypatch.setattr(loop, "_PROGRAMS", loop.ProgramCache(64))  # a mutant has the key of the original program
        job, problem = linear_job(path, preset, *law.options, chains=law.chains + POISONED)
        shared, lane, _, _ = arrange([job])
        poisoned = shared.y.copy()
        poisoned[:, ::2] = np.nan  # almost every batch has a NaN
        both = Shared(np.concatenate([shared.x, shared.x]), np.concatenate([shared.y, poisoned]))
        lane = lane._replace(dataset=(np.arange(len(lane.dataset)) >= law.chains).astype(np.int32))
        drawn = sample(job.program, both, lane, block_seconds=1e9)
        bad = np.min([block.bad_step for block in drawn.blocks], 0)
        lost = ~np.isfinite(drawn.draws.reshape(len(drawn.draws), -1)).all(1)
        kept = [
            block._replace(
                draws=None if block.draws is None else block.draws[: law.chains],
                stats={name: values[: law.chains] for name, values in block.stats.items()},
            )
            for block in drawn.blocks
        ]
        run = Run(problem, job.program.stages[-1].schedule, Outcome(drawn.draws[: law.chains], kept))
        return law.verdict(run), bad, lost

    def test_a_preset_obeys_its_law(self, preset, tmp_path, monkeypatch):
        """Laws 2 to 4 hold on the lanes without NaN. Law 7: exactly the lanes with NaN are reported as bad."""
        verdict, bad, lost = self.measure(preset, tmp_path, monkeypatch)
        assert verdict.passes, verdict
        assert (bad[:-POISONED] == NEVER).all()
        assert (bad[-POISONED:] < NEVER).all()
        assert not lost[:-POISONED].any()

    def test_a_mutant_does_not_obey_the_law(self, changed, tmp_path, monkeypatch):
        """Law 5: the check that a preset passes fails for the preset with one changed expression."""
        module, name = module_of(changed)
        factory = target_of({"_target_": f"{module}.{name}"}, "inference")
        mutant = getattr(mutate(module, *self.mutants[changed]), name)
        assert factory is not mutant
        monkeypatch.setattr(f"{module}.{name}", mutant)
        verdict, _, _ = self.measure(changed, tmp_path, monkeypatch)
        assert not verdict.passes, verdict

    def test_law_1_has_a_test(self):
        """The tests that the laws name in ``deterministic`` exist."""
        for preset, law in self.laws.items():
            file, _, name = law.deterministic.rpartition("::")
            path = FOLDER / file if file else Path(inspect.getfile(type(self)))
            tree = ast.parse(path.read_text(encoding="utf-8"))
            assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, preset


@functools.cache
def families() -> dict[str, type[PresetLaws]]:
    """Return the class ``TestLaws`` of each file of tests/inference that has one, by the name of the family."""
    found = {}
    for path in sorted(FOLDER.glob("test_*.py")):
        if "PresetLaws" not in path.read_text(encoding="utf-8"):
            continue
        spec = importlib.util.spec_from_file_location(f"family_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if hasattr(module, "TestLaws"):
            found[path.stem.removeprefix("test_")] = module.TestLaws
    return found


def declared(attribute: str) -> dict[Any, Any]:
    """Return the entries of an attribute of all families in one dict."""
    return {key: value for family in families().values() for key, value in getattr(family, attribute).items()}
