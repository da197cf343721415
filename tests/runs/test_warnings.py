"""What a record warns of: each threshold, from just below it and from just above it."""

from pathlib import Path

import numpy as np
import pytest

from bdlbench.runs import configuration
from bdlbench.runs.diagnosis import diagnosis
from bdlbench.runs.job import Job, make_job
from bdlbench.runs.tally import Tally
from bdlbench.sampling.loop import Block
from bdlbench.sampling.programs import NEVER

CHAINS, SAMPLES = 4, 100


def job_of(path: Path, *more: str, thinning: int = 1) -> Job:
    """A job of 4 chains x 100 draws that is not run."""
    schedule = f"{{num_chains: {CHAINS}, num_warmup: 10, num_samples: {SAMPLES}, thinning: {thinning}}}"
    small = ["data=cosine_gap", "data.n_cluster=10", "data.n_test=4", "network.width=3", f"store.path={path}"]
    return make_job(*configuration.compose([*small, "inference=hmc", f"inference.schedule={schedule}", *more]))


def tally() -> Tally:
    """Nothing has been gathered."""
    return Tally(CHAINS, [], gaussian=True)


def charge(one: Tally, num_diverging: list[int], *, phase: str = "sample") -> None:
    """Charge the first lanes of a block of the last stage in which the lanes' transitions diverged so often."""
    size = len(num_diverging)
    block = Block(
        stage=0, phase=phase, steps_done=SAMPLES, first_draw=0, draws=None, stats={}, num_grads=np.ones(size),
        num_diverging=np.array(num_diverging), bad_step=np.full(size, NEVER), seconds=1.0, provisional=None,
        anchor=None,
    )  # fmt: skip
    one.charge(block.of(slice(0, CHAINS)), 20, last=True)


@pytest.mark.parametrize(
    ("thinning", "diverging", "warnings"),
    [
        (1, [1, 1, 1, 1], []),  # 4 of 400: 1 % is not over 1 %
        (1, [5, 0, 0, 0], ["1.2% of the transitions diverged (over 1 %)"]),
        (1, [20, 0, 0, 0], ["5.0% of the transitions diverged (over 1 %)"]),
        (1, [18, 1, 1, 1], ["5.2% of the transitions diverged (over 5 %): not to be ranked"]),
        (1, [100, 100, 100, 100], ["100.0% of the transitions diverged (over 5 %): not to be ranked"]),
        (10, [40, 0, 0, 0], []),  # of 4,000 transitions, of which one in ten is kept
        (10, [41, 0, 0, 0], ["1.0% of the transitions diverged (over 1 %)"]),
    ],
)
def test_divergences(tmp_path: Path, thinning: int, diverging: list[int], warnings: list[str]) -> None:
    """The share is of all transitions after warm-up, over the job's own chains; over 5 % a run is not to be ranked."""
    one = tally()
    charge(one, [99] * CHAINS, phase="warmup")
    # two blocks, and a lane of another job beside this one's
    charge(one, [*diverging[:1], *[0] * (CHAINS - 1), 77])
    charge(one, [0, *diverging[1:], 77])
    assert diagnosis(job_of(tmp_path, thinning=thinning), one, {}).warnings == warnings


@pytest.mark.parametrize(
    ("diverging", "warnings"),
    [
        ([8, 8, 8, 8], []),  # 32 of 3,200
        ([33, 0, 0, 0], ["1.0% of the transitions diverged (over 1 %)"]),
        ([161, 0, 0, 0], ["5.0% of the transitions diverged (over 5 %): not to be ranked"]),
    ],
)
def test_divergences_of_a_population(tmp_path: Path, diverging: list[int], warnings: list[str]) -> None:
    """Each of 8 particles has a transition of its own at every step."""
    one = tally()
    one.population = 8
    charge(one, diverging)
    assert diagnosis(job_of(tmp_path), one, {}).warnings == warnings


@pytest.mark.parametrize(("capped", "warnings"), [(4, []), (8, ["2% of the draws reached max_tree_depth"])])
def test_depth_cap(tmp_path: Path, capped: int, warnings: list[str]) -> None:
    """Over 1 % of the draws whose tree was cut off at its greatest depth."""
    one = tally()
    one.capped = {"reached_max_treedepth": capped}
    assert diagnosis(job_of(tmp_path), one, {}).warnings == warnings


@pytest.mark.parametrize(
    ("temperature", "warnings"),
    [("1", []), ("1.0", []), ("0.5", ["tempered: T = 0.5, not the Bayesian posterior"])],
)
def test_a_tempered_run_says_so(tmp_path: Path, temperature: str, warnings: list[str]) -> None:
    """Any temperature but 1 is labelled."""
    job = job_of(tmp_path, f"temperature={temperature}")
    assert diagnosis(job, tally(), {}).warnings == warnings


@pytest.mark.parametrize(
    ("diagnostics", "warnings"),
    [
        ({"rhat_max": 1.01, "ess_bulk_min": 400.0, "psis_khat": 0.69}, []),
        ({"rhat_max": None, "ess_bulk_min": None, "psis_khat": None}, []),
        ({"rhat_max": 1.0123}, ["R-hat 1.012 > 1.01: the chains disagree"]),
        ({"ess_bulk_min": 399.4}, ["bulk ESS 399 < 400 (100 a chain)"]),
        ({"psis_khat": 0.7}, ["Pareto k-hat 0.70 >= 0.7: not to be trusted as a posterior"]),
    ],
)
def test_diagnostics(tmp_path: Path, diagnostics: dict[str, float | None], warnings: list[str]) -> None:
    """R-hat, bulk ESS a chain and k-hat at their limits; what could not be computed warns of nothing."""
    assert diagnosis(job_of(tmp_path), tally(), diagnostics).warnings == warnings


def test_energy(tmp_path: Path) -> None:
    """E-BFMI is the mean square step over the variance: 2 with sd 2 / sqrt(100) of independent energies, far over 0.3."""
    one = tally()
    rng = np.random.default_rng(0)
    one.energy = [rng.standard_normal((CHAINS, SAMPLES))]
    assert diagnosis(job_of(tmp_path), one, {}).warnings == []
    one.energy[0][2] = np.arange(SAMPLES)  # one chain suffices: steps of 1, variance n^2 / 12, ratio 0.001
    assert diagnosis(job_of(tmp_path), one, {}).warnings == ["E-BFMI 0.00 < 0.3"]


@pytest.mark.parametrize(
    ("energy", "warnings"),
    [
        (np.zeros((CHAINS, 3)), []),  # too few to say anything of
        (np.full((CHAINS, SAMPLES), np.inf), []),
        (np.ones((1, SAMPLES)), ["the energy of 1 chains never changes: they stand still"]),
        (
            np.stack([np.arange(SAMPLES), np.ones(SAMPLES), np.full(SAMPLES, np.nan)]),
            ["the energy of 1 chains never changes: they stand still", "E-BFMI 0.00 < 0.3"],
        ),
    ],
)
def test_energies_without_a_fraction(tmp_path: Path, energy: np.ndarray, warnings: list[str]) -> None:
    """Chains that are short, lost or stuck have no E-BFMI; the others' counts."""
    one = tally()
    one.energy = [energy]
    assert diagnosis(job_of(tmp_path), one, {}).warnings == warnings


@pytest.mark.parametrize(
    ("mean", "noise", "temperature", "says"),
    [
        (1.18, 0.01, "1", None),  # within a fifth
        (1.3, 0.01, "1", "wider"),
        (0.7, 0.01, "1", "narrower"),
        (1.3, 2.0, "1", None),  # 0.3 is three standard errors of 2 / sqrt(400)
        (1.3, 0.01, "0.5", "wider"),
    ],
)
def test_configurational_temperature(
    tmp_path: Path, mean: float, noise: float, temperature: str, says: str | None
) -> None:
    """Off by more than a fifth and by more than four standard errors; independent values have sd / sqrt(400)."""
    one = tally()
    values = np.random.default_rng(0).standard_normal((CHAINS, SAMPLES))
    one.temperatures = [mean + noise * (values - values.mean()) / values.std()]
    found = diagnosis(job_of(tmp_path, f"temperature={temperature}"), one, {})
    own = [text for text in found.warnings if "configurational" in text]
    assert len(own) == (says is not None) and all(f"the draws are {says} than" in text for text in own)
    assert all(f" in place of {temperature}:" in text for text in own)
    assert found.diagnostics["configurational_temperature"] == pytest.approx(mean * float(temperature))
    # ESS of independent values is itself an estimate, off by some tenths of its value
    error = found.diagnostics["configurational_temperature_mcse"] / (noise * float(temperature) / 20)
    assert 0.7 < error < 1.4


@pytest.mark.parametrize(
    ("drawn", "chains", "markov", "mixing", "missing"),
    [
        (SAMPLES, CHAINS, True, {"ess_bulk_min": 400.0, "rhat_max": 1.0}, []),
        (SAMPLES, 1, True, {"ess_bulk_min": 400.0, "rhat_max": None}, ["R-hat: a single chain"]),
        (SAMPLES, CHAINS, False, {}, ["R-hat and ESS: the draws are no Markov chain"]),
        (
            3,
            CHAINS,
            True,
            {},
            ["R-hat and ESS: 3 draws a chain are too few, at least 4", "E-BFMI: 3 draws", "Pareto k-hat"],
        ),
        (SAMPLES, CHAINS, True, {"ess_bulk_min": None}, ["R-hat and ESS: nothing that is diagnosed varies"]),
        (SAMPLES, 0, True, {}, ["R-hat and ESS: no chain"]),
    ],
)
def test_what_could_not_be_assessed_is_said(
    tmp_path: Path, drawn: int, chains: int, markov: bool, mixing: dict[str, float | None], missing: list[str]
) -> None:
    """Each check that was not made has a sentence with the reason, and no check that was made has one."""
    one = tally()
    one.drawn = drawn
    one.bad = {chain: (5, "sample", 0) for chain in range(chains, CHAINS)}
    rng = np.random.default_rng(0)
    one.energy = [rng.standard_normal((CHAINS, drawn))]
    one.log_ratios = [rng.standard_normal((CHAINS, 30))] if drawn == SAMPLES else [np.full((CHAINS, 3), np.nan)]
    one.num_nonfinite = 0 if drawn == SAMPLES else 1
    found = diagnosis(job_of(tmp_path), one, mixing, markov=markov).not_assessed
    assert len(found) == len(missing)
    assert all(text.startswith(start) for text, start in zip(found, missing, strict=True))


@pytest.mark.parametrize(
    ("series", "says"),
    [
        (np.ones((CHAINS, 3)), "3 draws"),
        (np.full((CHAINS, SAMPLES), np.nan), "no chain is finite"),
        (np.random.default_rng(0).standard_normal((CHAINS, SAMPLES)) * 10 + 1, "too uncertain"),
    ],
)
def test_a_temperature_that_says_nothing_is_not_assessed(tmp_path: Path, series: np.ndarray, says: str) -> None:
    """Too few draws, no finite chain, or an error of 10 / sqrt(400) = 0.5, of which four are more than half of T."""
    one = tally()
    one.drawn = series.shape[1]
    one.temperatures = [series]
    found = diagnosis(job_of(tmp_path), one, {"ess_bulk_min": 1.0, "rhat_max": 1.0})
    (text,) = [text for text in found.not_assessed if text.startswith("configurational temperature")]
    assert says in text
    assert not any("configurational" in text for text in found.warnings)
