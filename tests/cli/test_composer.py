"""The sweep's composer: what it sets itself is what Hydra composes, job by job, and what it cannot it leaves to Hydra."""

import json

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from bdlbench.cli.launcher import Composer
from bdlbench.runs.configuration import compose, conf_dir

SET = [
    [],
    ["data=yacht", "inference=sgld", "seed=3"],
    ["data=cosine_gap", "inference=nuts", "inference.schedule.num_warmup=7"],
    ["tuned=cosine_gap_sgld", "inference=sgld", "data=yacht", "temperature=0.5"],
    ["~tuned", "data=cosine_gap", "inference=nuts", "seed=1"],
    ["experiment=cosine_gap", "prior.weight_scale=1"],
    ["prior=fan_in", "prior.weight_scale=2", "network.width=null"],
    ["+inference@second=svi", "seed=2", "data.split=4"],
    ["metrics=[rmse,lppd]", "metrics.rmse={_target_: mine}"],
    ["inference.schedule={num_warmup: 5}", "inference.schedule.num_chains=3"],
    ["inference.schedule.num_chains=3", "inference.schedule={num_chains: 2, num_warmup: 5}"],
    ["inference.schedule={}", "seed=[]", "warm_start={}"],
    ["inference=swag", "inference.before.0.schedule.num_warmup=9"],
    ["inference=swag", "inference.before.0={schedule: {num_warmup: 5}, optimizer: {learning_rate: 1}}"],
    ["inference=swag", "inference.before=[]", "inference.optimizer={learning_rate: {_target_: mine, init_value: 1}}"],
    ["warm_start='a,b'", "data.split=[0,{a: [1.5,null]}]", "rerun=true"],
    ["warm_start=a\\,b", "seed=1_000", "temperature=1e-3"],
    ["store={path: q}", "paths={data: {a: {b: 1}}}"],
]
"""Overrides that need Hydra for their groups alone."""
LEFT = [
    ["+extra.deep=[1,{a: 2}]"],
    ["++seed=5", "++new=5"],
    ["~temperature"],
    ["inference=sgld", "~inference.decay"],
    ["warm_start=${seed}", "seed=4"],
    ["store.path=${data.split}/x", "data.split=3"],
    ["inference=ivon", "inference.schedule.num_warmup=77"],
    ["inference=svi_flow", "seed=9"],
]
"""Overrides that change what there is, or values that refer to others."""
REFUSED = [
    ["inference.nonsense=1"],
    ["store={path: a, nonsense: b}"],
    ["inference=swag", "inference.before.0={schedule: {nonsense: 5}}"],
    ["inference=swag", "inference.before.7.schedule=1"],
    ["store=5", "store.path=a"],
    ["prior@nowhere=fan_in"],
    ["seed=1,2"],
]
"""Overrides that are no run's."""


@pytest.fixture(scope="module")
def loader():
    """Hydra's loader, as in a multirun, and the configuration that Hydra passes to a launcher."""
    with hydra.initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
        made = GlobalHydra.instance().config_loader()
        return made, made.load_configuration("config", overrides=[], run_mode=RunMode.MULTIRUN)


@pytest.fixture(scope="module")
def composer(loader):
    """One composer for all jobs, as in a sweep, so that a job that changed values of another job would be noticed."""
    return Composer(*loader)


def by_hydra(composer, monkeypatch):
    """A list that collects the overrides that the composer passes to Hydra."""
    seen, load = [], composer.load
    monkeypatch.setattr(composer, "load", lambda overrides: (seen.append(overrides), load(overrides))[1])
    return seen


def same(one, other):
    """Whether values, types and order are equal. 1, 1.0 and true are different."""
    return json.dumps(one) == json.dumps(other)


@pytest.mark.slow
@pytest.mark.parametrize("overrides", SET, ids=" ".join)
def test_values_are_set_as_hydra_sets_them(overrides, composer, monkeypatch):
    """The result is the configuration and labels of a single run.

    Hydra is called once for the groups and never again.
    """
    expected = compose(overrides)
    handed = by_hydra(composer, monkeypatch)
    assert same(composer.compose(overrides), expected)
    assert all(composer.is_group(override) for one in handed for override in composer.parser.parse_overrides(one))
    handed.clear()
    assert same(composer.compose(overrides), expected)
    assert handed == []


@pytest.mark.slow
@pytest.mark.parametrize("overrides", LEFT, ids=" ".join)
def test_what_it_cannot_set_is_left_to_hydra(overrides, composer, monkeypatch):
    handed = by_hydra(composer, monkeypatch)
    assert same(composer.compose(overrides), compose(overrides))
    assert overrides in handed


@pytest.mark.parametrize("overrides", REFUSED, ids=" ".join)
def test_what_hydra_refuses_is_refused_in_its_words(overrides, composer, loader):
    with pytest.raises(Exception) as refused:
        loader[0].load_sweep_config(loader[1], overrides)
    with pytest.raises(type(refused.value)) as here:
        composer.compose(overrides)
    assert str(here.value) == str(refused.value)
