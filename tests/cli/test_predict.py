"""``bdlbench-results predict``: new rows from a file, by name and in original units."""

import numpy as np
import pandas as pd
import pytest
from archives import unpacked

import bdlbench as bdl
from bdlbench.cli.results import main
from bdlbench.errors import ConfigError
from bdlbench.runs.group import run


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A stored run of Laplace, whose predictions need the stored anchor."""
    store = tmp_path_factory.mktemp("results") / "store"
    record = run(["data=diabetes", "inference=laplace", "~tuned", "network.width=3", "progress=off",
                  f"store.path={store}", "inference.schedule.num_samples=20",
                  "inference.before.0.schedule.num_warmup=100"])  # fmt: skip
    return store, record["id"]


def test_a_table_in_and_out(stored, tmp_path, capsys):
    """Columns may have any order. Additional ones are named on standard error, and missing ones end the command."""
    store, run_id = stored
    posterior = bdl.load(run_id, store=store)
    dataset = posterior._origin.job.dataset
    x = dataset.x_scaler.original(dataset.test.x[:5]).astype(float)
    table = pd.DataFrame(x, columns=dataset.feature_names)
    table[sorted(table.columns)].assign(patient=range(5)).to_csv(tmp_path / "new.csv", index=False)
    command = ["predict", run_id[:-2], str(tmp_path / "new.csv"), "--store", str(store)]
    assert main([*command, "-o", str(tmp_path / "out.csv")]) == 0
    assert "patient of x are not used" in capsys.readouterr().err
    out = pd.read_csv(tmp_path / "out.csv")
    assert list(out) == ["mean", "sd", "q5", "q50", "q95"]
    # Written and read as decimal numbers; x is rounded to float32 after it has been in a file.
    np.testing.assert_allclose(out["mean"], posterior.predict(x).mean, rtol=1e-5)
    assert ((out["q5"] < out["q50"]) & (out["q50"] < out["q95"])).all()
    table.drop(columns="bmi").to_csv(tmp_path / "few.csv", index=False)
    assert main(["predict", run_id, str(tmp_path / "few.csv"), "--store", str(store)]) == 2
    assert "lacks the column bmi" in capsys.readouterr().err
    assert main(["predict", run_id, str(tmp_path / "none.csv"), "--store", str(store)]) == 2


def test_a_run_predicts_without_its_data(stored, tmp_path, monkeypatch):
    """Stored scalers, names and anchor are enough: without the data, the output has the same bits as before."""
    from bdlbench.evaluation.predictive import predictive
    from bdlbench.runs import job as job_module
    from bdlbench.store import Store

    store, run_id = stored
    dataset = bdl.load(run_id, store=store)._origin.job.dataset
    table = pd.DataFrame(dataset.x_scaler.original(dataset.test.x[:5]), columns=dataset.feature_names)
    table.to_csv(tmp_path / "new.csv", index=False)
    command = ["predict", run_id, str(tmp_path / "new.csv"), "--store", str(store), "-o"]
    assert main([*command, str(tmp_path / "with.csv")]) == 0

    def gone(config):
        raise ConfigError("data.path=my.csv is no file")

    monkeypatch.setattr(job_module, "load_data", gone)
    assert main([*command, str(tmp_path / "without.csv")]) == 0
    assert (tmp_path / "with.csv").read_text() == (tmp_path / "without.csv").read_text()
    with pytest.raises(ConfigError, match="predicts by a linearised network"):  # it came past the data
        predictive(Store(store), run_id, table)


def test_a_linearised_run_of_before_is_refused_by_name(stored, tmp_path, capsys):
    """Without the anchor, the network would be another function, so the run is refused."""
    import shutil

    store, run_id = stored
    shutil.copytree(store, tmp_path / "old")
    unpacked(tmp_path / "old" / run_id)
    shutil.rmtree(tmp_path / "old" / run_id / "posterior.zarr" / "constant_data")
    text = (tmp_path / "old" / run_id / "posterior.zarr" / "zarr.json").read_text()
    import json

    about = json.loads(text)
    held = about["consolidated_metadata"]["metadata"]
    about["consolidated_metadata"]["metadata"] = {k: v for k, v in held.items() if not k.startswith("constant_data")}
    (tmp_path / "old" / run_id / "posterior.zarr" / "zarr.json").write_text(json.dumps(about))
    (tmp_path / "new.csv").write_text("a\n1\n")
    assert main(["predict", run_id, str(tmp_path / "new.csv"), "--store", str(tmp_path / "old")]) == 2
    assert "made before its anchor was stored" in capsys.readouterr().err
