"""Finding, reading, checking and deleting runs."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import yaml
from archives import unpacked

from bdlbench.store import RunBusy, Store, StoreError
from bdlbench.store.errors import LaterSchema
from bdlbench.store.files import checksum
from bdlbench.store.records import SCHEMA, own_checksum
from bdlbench.types import ConfigError


def strict(text: str):
    """Parse JSON that has no NaN, which Python's parser would let through."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_record_comes_back(store, make_run, config):
    """What was finished is what is read, with id, schema, config and checksums added."""
    made = make_run("run-1", extra={"tuple": (1, 2), "scalar": np.float32(0.5), "array": np.arange(2)})
    record = store.record("run-1")
    assert record == made
    assert {key: record[key] for key in ("id", "schema", "config")} == {
        "id": "run-1",
        "schema": SCHEMA,
        "config": config,
    }
    assert record["extra"] == {"tuple": [1, 2], "scalar": 0.5, "array": [0, 1]}
    assert set(record["files"]) == {"config.yaml", "curve.jsonl"}
    assert yaml.safe_load((store.path / "run-1/config.yaml").read_text()) == config
    assert store.has("run-1") and not store.has("run-2")


def test_nonfinite_floats_survive_strict_json(store, make_run):
    """NaN and infinities are null in the file, listed in nonfinite, and themselves again when read; None stays None."""
    metrics = {"lppd": -math.inf, "a/b~c": math.nan, "rhat_max": None}
    make_run("run", metrics=metrics, versions={"list": [1.0, math.inf]})
    stored = strict((store.path / "run/run.json").read_text())
    assert stored["metrics"] == {"lppd": None, "a/b~c": None, "rhat_max": None}
    assert stored["versions"] == {"list": [1.0, None]}
    assert stored["nonfinite"] == {
        "/metrics/lppd": "-Infinity",
        "/metrics/a~1b~0c": "NaN",
        "/versions/list/1": "Infinity",
    }
    read = store.record("run")["metrics"]
    assert store.record("run")["versions"] == {"list": [1.0, math.inf]}
    assert math.isnan(read.pop("a/b~c"))
    assert read == {"lppd": -math.inf, "rhat_max": None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": "done"}, "none of complete"),
        ({"status": "failed"}, "gives no reason"),
        ({"metrics": {"status": 1.0}}, "names of other columns"),
        ({"metrics": {"seconds_a": 1.0}}, "names of other columns"),
        ({"schema": SCHEMA + 1}, "has schema"),
        ({"id": "other"}, "cannot be stored"),
    ],
)
def test_a_bad_record_is_refused(store, changes, message, config, record_of):
    """A record that readers would misread is refused, and the run does not count."""
    with store.writer("run", config) as writer, pytest.raises(ValueError, match=message):
        writer.finish(record_of(**changes))
    with store.writer("run", config) as writer, pytest.raises(ValueError, match="lacks labels, seconds"):
        writer.finish({k: v for k, v in record_of().items() if k not in ("labels", "seconds")})
    with store.writer("run", config) as writer, pytest.raises(TypeError, match="cannot hold a complex"):
        writer.finish(record_of(metrics={"lppd": 1j}))
    assert not store.has("run") and store.unfinished() == ["run"]


def test_runs_is_one_flat_row_a_run(store, make_run):
    """Columns are flat and in their places, missing values are missing, all statuses are there."""
    make_run("b", "svi", created="2025-01-02T00:00:00+00:00", status="failed", reason="why", metrics={}, warnings=["x"])
    make_run("a", "nuts", created="2025-01-03T00:00:00+00:00")
    frame = store.runs()
    assert frame["id"].tolist() == ["b", "a"]  # by creation
    columns = [
        "id",
        "status",
        "reason",
        "data",
        "model",
        "network",
        "prior",
        "likelihood",
        "inference",
        "seed",
        "split",
    ]
    metrics = ["lppd", "rmse", "coverage_90", "standardized_lppd"]
    seconds = [f"seconds_{phase}" for phase in ("setup", "compile", "warmup", "sample", "predict")]
    rest = [
        "num_grads_warmup",
        "num_grads_sample",
        "tuning_num_grads",
        "lanes",
        "peak_memory_bytes",
        "device",
        "warnings",
        "not_assessed",
        "created",
    ]
    assert frame.columns.tolist() == columns + metrics + seconds + rest
    b, a = frame.to_dict("records")
    assert (a["inference"], a["seed"], a["split"], a["standardized_lppd"], a["num_grads_sample"]) == (
        "nuts",
        3,
        1,
        -1.2,
        2000,
    )
    assert (b["status"], b["reason"], b["warnings"]) == ("failed", "why", 1)
    assert math.isnan(b["lppd"])
    assert store.runs(config=True)["config.inference.schedule.num_chains"].tolist() == [2, 2]


def test_an_empty_store_is_an_empty_table(tmp_path):
    """No folder, no runs; the columns are there, so that queries work."""
    store = Store(tmp_path / "nowhere")
    assert len(store.runs()) == 0 and "inference" in store.runs()
    assert store.sql("select count(*) as n from runs")["n"].tolist() == [0]
    assert store.unfinished() == []
    assert not (tmp_path / "nowhere").exists()


def test_sql_over_runs(store, make_run, config):
    """Missing is NULL and so left out of a mean; NaN is a number and poisons it; settings can be asked for."""
    make_run("a", "nuts", metrics={"lppd": -1.0, "rmse": 1.0}, config={**config, "kind": "x"})
    make_run("b", "nuts", metrics={"lppd": None, "rmse": math.nan}, config={**config, "kind": 2})
    make_run("c", "svi", metrics={"lppd": -3.0, "rmse": 2}, config={**config, "kind": [1]})
    answer = store.sql(
        "select inference, avg(lppd) as m, avg(rmse) as r, count(lppd) as n from runs group by 1 order by 1"
    )
    assert answer["m"].tolist() == [-1.0, -3.0] and answer["n"].tolist() == [1, 1]
    assert math.isnan(answer["r"][0]) and answer["r"][1] == 2.0
    assert store.sql('select "config.kind" as k from runs order by id')["k"].tolist() == ["x", "2", "[1]"]
    assert store.sql('select "config.inference.step_size" as s from runs')["s"].tolist() == [1e-5] * 3
    with pytest.raises(ConfigError, match="sql: the query cannot be answered"):
        store.sql("select nothing from runs")


def test_find_takes_a_unique_beginning(store, make_run):
    """An exact id wins over longer ones; several candidates are named."""
    for id in ("nuts-1", "nuts-12", "svi-1"):
        make_run(id)
    assert (store.find("s"), store.find("nuts-1")) == ("svi-1", "nuts-1")
    with pytest.raises(ConfigError, match="nuts-1, nuts-12"):
        store.find("nuts")
    with pytest.raises(ConfigError, match="begins with 'x'"):
        store.find("x")
    for bad in ("../nuts-1", ".lock", "", "a/b"):
        with pytest.raises(ConfigError, match="is no run id"):
            store.record(bad)
    with pytest.raises(ConfigError, match="no finished run 'x'"):
        store.record("x")


def test_the_curve_comes_back(store, config):
    """One row a line, non-finite values included; a line that is still being written is left out."""
    with store.writer("run", config) as writer:
        writer.append_curve({"draws": 1, "lppd": -math.inf})
        writer.append_curve({"draws": 10, "lppd": -2.0, "rhat": np.float32(1.5)})
        with open(store.path / "run/curve.jsonl", "ab") as file:
            file.write(b'{"draws": 1')
        frame = store.curve("run")
    assert frame["draws"].tolist() == [1, 10]
    assert frame["lppd"].tolist() == [-math.inf, -2.0]
    assert frame["rhat"][1] == 1.5
    (store.path / "run/curve.jsonl").write_bytes(b"{]\n")
    with pytest.raises(StoreError, match="damaged"):
        store.curve("run")
    with pytest.raises(ConfigError, match="no curve of a run 'x'"):
        store.curve("x")


@pytest.fixture
def with_draws(store, config, record_of):
    """A run of two chunks."""
    values = np.ones((1, 10, 2), "float32")
    with store.writer("run", config) as writer:
        writer.allocate("posterior", "w", values.shape, "float32", ("chain", "draw", "w_dim_0"), chunk_draws=5)
        writer.write("posterior", "w", 0, values)
        writer.finish(record_of())
    return store.path / "run"


def test_checksums_find_every_fault(store, with_draws):
    """A flipped bit, a short or lost archive, a lost file and a changed record are each found; a sound run has no fault."""
    assert store.verify("run") == []
    archive = with_draws / "posterior.zarr.zip"
    whole = archive.read_bytes()
    for broken in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:-1]):
        archive.write_bytes(broken)
        assert store.verify("run") == [f"'{archive}' does not fit its checksum."]
    archive.unlink()
    assert store.verify("run") == [f"'{archive}' is missing."]
    archive.write_bytes(whole)
    assert store.verify("run") == []
    (with_draws / "curve.jsonl").unlink()
    assert store.verify("run") == [f"'{with_draws}/curve.jsonl' is missing."]


def test_a_shell_repeats_the_checksums(store, with_draws):
    """Of a file, and of a folder, as stores of version 1 have for the draws, by the command in docs/store.md."""
    if sys.platform != "linux":
        pytest.skip("find -printf is GNU's")
    command = "find . -type f -printf '%P\\n' | LC_ALL=C sort | xargs sha256sum | sha256sum"
    one = subprocess.run(["sha256sum", with_draws / "posterior.zarr.zip"], check=True, capture_output=True, text=True)
    assert one.stdout.split()[0] == store.record("run")["files"]["posterior.zarr.zip"]["sha256"]
    folder = unpacked(with_draws)
    printed = subprocess.run(command, shell=True, cwd=folder, check=True, capture_output=True, text=True).stdout
    assert printed.split()[0] == checksum(folder)["sha256"]


@pytest.mark.parametrize("damage", [lambda t: t[: len(t) // 2], lambda t: t.replace(b"-5.5", b"-5.4"), lambda t: b""])
def test_a_damaged_record_does_not_count_and_is_set_aside(store, make_run, damage):
    """A truncated or altered record is no record: the run is not found, said to be damaged, and can be run again."""
    make_run("run")
    make_run("sound")
    path = store.path / "run/run.json"
    path.write_bytes(damage(path.read_bytes()))
    assert not store.has("run")
    assert store.verify("run")
    with pytest.raises(StoreError):
        store.record("run")
    make_run("run")
    assert store.has("run") and len(store.runs()) == 2
    (aside,) = (store.path / ".set_aside").iterdir()
    assert aside.name.startswith("run.") and (aside / "run.json").exists()


def test_runs_names_records_it_cannot_read(store, make_run, config):
    """One broken record neither hides the others nor goes unmentioned; nor does one of a later schema."""
    make_run("good")
    make_run("bad")
    make_run("later")
    (store.path / "bad/run.json").write_text("{")
    later = store.path / "later/run.json"
    record = json.loads(later.read_text()) | {"schema": SCHEMA + 1}
    later.write_text(json.dumps(record | {"record_sha256": own_checksum(record)}))
    with pytest.warns(UserWarning, match="2 records .* bad, later"):
        assert store.runs()["id"].tolist() == ["good"]
    with pytest.raises(LaterSchema, match="upgrade bdlbench"):
        store.writer("later", config)
    assert later.exists()


def test_delete(store, make_run, config):
    """A deleted run is gone at once; one being written is refused; what is not there is an error."""
    make_run("a")
    store.delete("a")
    assert store.runs()["id"].tolist() == [] and not (store.path / "a").exists()
    with store.writer("b", config), pytest.raises(RunBusy, match="b is being written by process"):
        store.delete("b")
    store.delete("b")
    with pytest.raises(ConfigError, match="has no run 'a'"):
        store.delete("a")


def test_an_unwritable_store_is_found_before_work(tmp_path):
    """A path below a file, and a folder where nothing can be made even by root (procfs)."""
    (tmp_path / "file").write_text("")
    paths = [tmp_path / "file", tmp_path / "file" / "store"]
    if sys.platform == "linux":
        paths.append("/proc/self")
    for path in paths:
        with pytest.raises(ConfigError, match=r"^store\.path: cannot write to .* set store\.path to"):
            Store(path).check_writable()
    Store(tmp_path / "new" / "store").check_writable()
    assert list((tmp_path / "new" / "store").iterdir()) == []
