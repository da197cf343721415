"""A stored configuration names what may run: what the package ships, and nothing that its author chose."""

import sys

import pytest

from bdlbench.errors import ConfigError
from bdlbench.runs.configuration import compose
from bdlbench.runs.stored_draws import load_job
from bdlbench.runs.trust import is_trusted, refuse_untrusted, shipped_targets, untrusted
from bdlbench.store import Store

PAYLOADS = (
    "pandas.read_pickle",
    "joblib.load",
    "numpy.load",
    "numpy.savetxt",
    "os.system",
    "builtins.eval",
    "payload_of_the_working_folder.go",
    "bdlbench.data.fetch.fetch",
    "bdlbench.runs.group.run",
    "optax.os.system",
    "optax._src.base.os.system",
    "optax.schedules.os",
    "flax.nnx.os.system",
    "flax.nnx.Pytree",
    "flax.serialization.msgpack_restore",
    "numpyro.distributions.Distribution.__init__.__globals__",
    "numpyro.distributions.kl_divergence",
    "numpyro.distributions.constraints.positive",
    "hydra.utils.get_method",
)

MADE = "${oc.create:{_target_: posix.system, command: id}}"
"""An interpolation that OmegaConf replaces by a factory when the configuration is instantiated."""


@pytest.mark.parametrize("target", [*PAYLOADS, None, 3, ["optax.adam"]])
def test_everything_else_is_refused(target):
    """Writers, unpicklers, other modules, and objects that a library's module imports from elsewhere are refused."""
    assert not is_trusted(target)


def test_a_name_that_is_refused_is_not_imported(tmp_path, monkeypatch):
    """A module of that name in the working folder would run when it is imported."""
    (tmp_path / "payload_of_the_working_folder.py").write_text("raise SystemExit('ran')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not is_trusted("payload_of_the_working_folder.go")
    assert "payload_of_the_working_folder" not in sys.modules


@pytest.mark.parametrize("section", ["inference", "network", "data"])
def test_opening_a_run_imports_nothing_that_it_names(section, tmp_path, monkeypatch, store_path):
    """The run is refused before any of its factories is imported."""
    (tmp_path / "payload_of_a_run.py").write_text("raise SystemExit('ran')")
    monkeypatch.syspath_prepend(str(tmp_path))
    config, labels = compose(["inference=map"])
    config[section] = {**config[section], "_target_": "payload_of_a_run.go"}
    with Store(store_path).writer("foreign", config) as run:
        empty = {name: {} for name in ("metrics", "seconds", "num_grads", "versions")}
        run.finish(
            {"status": "complete", "labels": labels, "data_checksum": "x", "device": "cpu", "warnings": [], **empty}
        )
    with pytest.raises(ConfigError, match=f"{section}._target_=payload_of_a_run.go"):
        load_job(Store(store_path), "foreign")
    assert "payload_of_a_run" not in sys.modules


@pytest.mark.parametrize(
    "target",
    ["optax.adam", "optax.cosine_decay_schedule", "optax.schedules.cosine_decay_schedule",
     "numpyro.distributions.LogNormal", "flax.nnx.Linear", "flax.linen.Dense", "bdlbench.inference.hmc.nuts"],
)  # fmt: skip
def test_what_configurations_need_is_trusted(target):
    """Optimisers, schedules, distributions, modules and the package's own factories are trusted."""
    assert is_trusted(target)


@pytest.mark.parametrize("preset", ["nuts", "svi", "mile", "laplace", "sgld"])
def test_a_shipped_configuration_is_trusted_whole(preset):
    """Every shipped configuration is trusted, so a run of the package's own parts needs no ``trust``."""
    config, _ = compose([f"inference={preset}"])
    assert list(untrusted(config)) == []
    assert len(shipped_targets()) > 60


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"network": {"_target_": "mine.Net"}}, r"network._target_=mine.Net"),
        ({"data": {"_target_": "bdlbench.data.files.csv", "_args_": ["x"]}}, r"data._args_"),
        ({"paths": {"data": None, "mirror": "http://127.0.0.1/"}}, r"paths.mirror"),
        ({"inference": {"before": [{"_target_": "os.system"}]}}, r"inference.before.0._target_=os.system"),
        (
            {"network": {"_target_": "bdlbench.networks.mlp.MLP", "activation": MADE}},
            r"network.activation=\$\{oc.create",
        ),
        ({"inference": {"before": [{"scales": [MADE]}]}}, r"inference.before.0.scales.0=\$\{oc.create"),
        ({"prior": {MADE: 1}}, r"prior.\$\{oc.create"),
        ({"data": {"path": "${oc.env:HOME}"}}, r"data.path=\$\{oc.env:HOME"),
    ],
)
def test_the_refusal_names_what_it_found_and_how_to_trust(change, words):
    """The message is one sentence with the entry and the option that trusts it."""
    config, _ = compose([])
    with pytest.raises(
        ConfigError, match=rf"run 'x' was configured with {words}.*give trust=True in Python, or --trust"
    ):
        refuse_untrusted({**config, **change}, "x")
