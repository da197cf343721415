"""Runs that begin where stored ones ended: start points, price, identity, bits, and what is refused."""

import shutil

import numpy as np
import pytest
import zarr
from archives import unpacked
from test_records import compilations, options

from bdlbench.runs import warm_start
from bdlbench.runs.configuration import compose
from bdlbench.runs.group import run
from bdlbench.runs.job import check_job as check
from bdlbench.runs.job import make_job
from bdlbench.runs.outcome import Outcome
from bdlbench.runs.stored_draws import load_draws, load_job
from bdlbench.runs.sweep import run_sweep
from bdlbench.store import Store
from bdlbench.types import ConfigError

STILL = [
    "inference.step_size=1e-14",
    "inference.schedule={num_chains: 5, num_warmup: 0, num_samples: 1, thinning: 1, batch_size: 8}",
]
"""SGLD that moves by sqrt(2e-14) = 1.4e-7 standard normals: its one draw is its start."""


def job(store, *more, method="sgld"):
    """A job that starts from a stored run, checked as a run checks it."""
    made = make_job(*compose(options(method, store, *more)))
    check(made)
    return made


def ends(store, run_id, num_draws):
    """Theta of a stored run as (chain, draw, D)."""
    draws = load_draws(Store(store), run_id)
    return draws.reshape(-1, num_draws, draws.shape[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "places"),
    [
        ("nuts", [(0, 9), (1, 9), (0, 6), (1, 6), (0, 3)]),  # two chains of ten draws: three rounds
        ("svi", [(0, 9), (0, 7), (0, 5), (0, 3), (0, 1)]),  # one chain of ten independent draws
        ("map", [(0, 0), (1, 0), (0, 0), (1, 0), (0, 0)]),  # two chains of one draw: some begin alike
    ],
)
def test_chains_begin_at_the_stored_draws(method, places, store_path):
    """Last draws first, then draws spaced back; and the loop begins there.

    SGLD of step 1e-14 moves by eps |g| < 1e-9 and by at most six standard normals times 1.4e-7, 1e-6. A float32 theta
    below 10 in size is stored, and mapped there and back, to 5e-6.
    """
    parent = run(options(method, store_path))
    theirs = ends(store_path, parent["id"], {"nuts": 10, "svi": 10, "map": 1}[method])
    wanted = np.stack([theirs[place] for place in places])
    child = job(store_path, f"warm_start={parent['id']}", *STILL)
    np.testing.assert_allclose(warm_start.thetas([child]), wanted, rtol=1e-6, atol=1e-6)
    record = run(options("sgld", store_path, f"warm_start={parent['id']}", *STILL))
    assert np.abs(wanted).max() < 10
    np.testing.assert_allclose(ends(store_path, record["id"], 1)[:, 0], wanted, atol=1e-5)


@pytest.mark.slow
def test_the_parents_price_is_the_childs(store_path):
    """Gradients and seconds of parent and grandparent are in the record, the curve and the warnings; no stage before."""
    first = run(options("map", store_path))
    second = run(options("svi", store_path, f"warm_start={first['id']}"))
    third = run(options("nuts", store_path, f"warm_start={second['id']}"))
    assert first["warm_start"] is None
    assert second["config"]["inference"]["before"] == third["config"]["inference"]["before"] == []
    assert second["num_grads"] == {"warmup": 50.0, "sample": 0.0, "warm_start": 100.0}, (
        "two chains of 50 steps, then 50"
    )
    assert second["warm_start"]["num_grads"] == 100
    assert third["warm_start"]["id"] == second["id"]
    assert third["num_grads"]["warm_start"] == third["warm_start"]["num_grads"] == 150
    spent = sum(record["seconds"][phase] for record in (first, second) for phase in ("warmup", "sample"))
    assert third["warm_start"]["seconds"] == pytest.approx(spent)
    curve = Store(store_path).curve(third["id"])
    assert curve["num_grads"].iloc[-1] == sum(third["num_grads"].values())
    assert any(f"150 of the gradients are those of run {second['id']}" in w for w in third["warnings"])
    without = run(options("nuts", store_path))
    assert "warm_start" not in without["num_grads"]
    assert without["config"]["inference"]["before"]


def test_nuts_goes_on_from_its_own_draws(store_path):
    """NUTS from NUTS: no MAP, its own warm-up, and the analysis of it needs no parent."""
    parent = run(options("nuts", store_path))
    child = run(options("nuts", store_path, f"warm_start={parent['id']}", "seed=1"))
    assert child["status"] == "complete"
    assert child["notes"] == parent["notes"], "the same posterior: nothing to say"
    Store(store_path).delete(parent["id"])
    assert load_draws(Store(store_path), child["id"], load_job(Store(store_path), child["id"])).shape == (20, 14)


def test_the_beginning_of_an_id_is_enough_and_the_bits_repeat(tmp_path):
    """A prefix names the same run; another store with the same parent gives the same bits."""
    parent = run(options("map", tmp_path / "a"))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    ask = lambda place, name: run(options("sgld", tmp_path / place, f"warm_start={name}"))
    first, again = ask("a", parent["id"]), ask("b", "cosine_gap-map")
    assert ask("a", "cosine_gap-m") == first
    assert again["id"] == first["id"] != run(options("sgld", tmp_path / "a"))["id"]
    draws = [Store(tmp_path / name).posterior(first["id"])["posterior"].to_dataset() for name in "ab"]
    assert draws[0].equals(draws[1])


@pytest.mark.slow
def test_a_sweep_over_parents_is_one_program_and_changes_no_bit(tmp_path):
    """Two parents and none: three runs; the warm ones share lanes and are what they are alone, and compile nothing."""
    parents = [run(options("map", tmp_path / "alone", f"seed={seed}"))["id"] for seed in (0, 1)]
    shutil.copytree(tmp_path / "alone", tmp_path / "sweep")
    asked = [[f"warm_start={name}"] for name in (*parents, "null")]
    alone = [run(options("sgld", tmp_path / "alone", *asked[0]))]
    with compilations() as found:
        alone += [run(options("sgld", tmp_path / "alone", *more)) for more in asked[1:2]]
    assert found == []
    alone += [run(options("sgld", tmp_path / "alone", *asked[2]))]
    together = [options("sgld", tmp_path / "sweep", *more) for more in asked]
    outcome = Outcome()
    records = run_sweep([(*compose(o), " ".join(o)) for o in together], outcome, max_lanes=64)
    assert not outcome.errors
    assert [r["lanes"] for r in records] == [4, 4, 2]
    assert len({r["id"] for r in records}) == 3
    for one, other in zip(alone, records, strict=True):
        assert one["id"] == other["id"]
        assert one["metrics"] == other["metrics"]


def test_another_data_set_is_allowed_and_noted(store_path):
    """If the parent has other rows or another prior, the record says so."""
    parent = run(options("map", store_path))["id"]
    child = run(options("sgld", store_path, f"warm_start={parent}", "data.seed=7", "prior.weight_scale=2.0"))
    assert f"warm start: run {parent} had other data, another prior" in child["notes"]


def spoil(store, run_id, chain):
    """Make the last draw of a chain (all, where None) not finite, as a chain that diverged is stored."""
    for _, array in zarr.open_group(unpacked(store / run_id) / "posterior", mode="r+").arrays():
        if array.ndim >= 2:
            array[slice(None) if chain is None else chain, -1] = np.nan


def test_chains_that_diverged_are_passed_over(store_path):
    """All chains start at different draws of the finite chain."""
    parent = run(options("nuts", store_path))["id"]
    theirs = ends(store_path, parent, 10)
    spoil(store_path, parent, 0)
    found = warm_start.thetas([job(store_path, f"warm_start={parent}", *STILL)])
    np.testing.assert_allclose(found, theirs[1, [9, 7, 5, 3, 1]], rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (["warm_start=nowhere"], "warm_start: no finished run in .* begins with 'nowhere'"),
        (["warm_start=3"], "warm_start=3 must be the id of a stored run"),
        (["warm_start=c"], "warm_start: 'c' is the beginning of 2 runs"),
        (
            ["warm_start=cosine_gap-map", "network.width=5"],
            r"site 'network.hidden.0.bias' has shape \(4,\) in .* \(5,\)",
        ),
        (["warm_start=cosine_gap-map", "likelihood=gaussian_fixed"], "site 'sigma' has shape .* but is missing here"),
        (["warm_start=cosine_gap-svi"], "no chain of run 'cosine_gap-svi-.*' ends in a finite draw"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(asked, sentence, store_path):
    """It is refused before anything is compiled or written."""
    run(options("map", store_path))
    spoil(store_path, run(options("svi", store_path))["id"], None)
    before = sorted(path.name for path in store_path.iterdir())
    with pytest.raises(ConfigError, match=sentence):
        job(store_path, *asked)
    assert sorted(path.name for path in store_path.iterdir()) == before


@pytest.mark.parametrize(
    ("status", "sentence"), [("failed", "run 'other' failed"), ("complete", "run 'other' .*stored no draws")]
)
def test_a_run_without_draws_starts_nothing(status, sentence, store_path):
    """A failed run, and a run whose draws are gone, are refused as parents."""
    config, labels = compose(options("map", store_path))
    record = {"labels": labels, "metrics": {}, "seconds": {}, "num_grads": {}, "device": "", "versions": {}}
    with Store(store_path).writer("other", config) as writer:
        writer.finish({**record, "status": status, "reason": "no reason", "warnings": []})
    with pytest.raises(ConfigError, match=sentence):
        job(store_path, "warm_start=other")


def test_values_outside_of_the_new_support_are_refused(store_path):
    """A noise of 1e6 fits a log-normal prior, and no uniform one on (0, 10)."""
    parent = run(options("map", store_path))["id"]
    for name, array in zarr.open_group(unpacked(store_path / parent) / "posterior", mode="r+").arrays():
        if name == "sigma":
            array[:] = 1e6
    with pytest.raises(ConfigError, match="lies outside of what this model allows"):
        job(store_path, f"warm_start={parent}", "likelihood=gaussian_uniform_noise")
