"""Trials as data: the rows, the files written from them, and what a record says of tuned settings."""

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from bdlbench.errors import ConfigError
from bdlbench.report.tables import contents
from bdlbench.runs import tuned
from bdlbench.runs.configuration import compose, conf_dir
from bdlbench.runs.group import run
from bdlbench.runs.job import make_job
from bdlbench.runs.outcome import shipped_options
from bdlbench.store import Store
from experiments.tuning import report, scores, spaces, trials, tune, write
from experiments.tuning.trials import Trial

ROWS = trials.read()
SEARCHES = trials.in_force(ROWS)
BY_RULE = {pair: search for pair, search in SEARCHES.items() if search[0].rule != trials.BY_HAND}
FOLDER = conf_dir() / "tuned"


def name(pair):
    return "_".join(pair)


def a_trial(**changes):
    """A trial of SGLD on diabetes that was chosen."""
    fields = {
        "data": "diabetes",
        "method": "sgld",
        "search": 1,
        "trial": 0,
        "network": {"name": "mlp", "width": 50},
        "prior": {"name": "fan_in"},
        "likelihood": {"name": "auto", "noise": {"name": "LogNormal", "loc": -1.0}},
        "rule": "distance",
        "setting": {"step_size": 3e-05, "start_at_map": True},
        "shared": {"schedule.batch_size": None},
        "shortened": {"num_samples": 30},
        "status": "complete",
        "num_grads": 12.5,
        "distance": 0.25,
        "chosen": True,
        "search_num_grads": 12.5,
        "note": 'a comma, and a "quotation"',
    }
    return Trial(**fields | changes)


@pytest.fixture
def file(tmp_path):
    """A file of trials without a row."""
    path = tmp_path / "trials.csv"
    path.write_bytes(trials.encode([]))
    return path


# ---- the rows


def test_the_file_is_what_its_rows_encode():
    """So a row that a script adds changes no other line."""
    assert trials.FILE.read_bytes() == trials.encode(ROWS)
    assert trials.decode(trials.encode([a_trial()]).decode()) == [a_trial()]


@pytest.mark.parametrize("pair", SEARCHES, ids=name)
def test_a_search_is_whole(pair):
    """Trials are numbered, one at most is chosen, and what they share and spent is said alike in each."""
    data, method = pair
    search = SEARCHES[pair]
    assert data in shipped_options("data")
    assert method in shipped_options("inference")
    assert [trial.trial for trial in search] == list(range(len(search)))
    assert [trial.status for trial in search if trial.chosen] in ([], ["complete"])
    own = ("trial", "setting", "status", "num_grads", "chosen", "note", *scores.Score._fields, "ess_per_million_grads")
    same = [{k: v for k, v in dataclasses.asdict(trial).items() if k not in own} for trial in search]
    assert all(each == same[0] for each in same)
    spent = [trial.num_grads for trial in search]
    if None not in spent:
        assert search[0].search_num_grads == sum(spent)


@pytest.mark.parametrize("pair", BY_RULE, ids=name)
def test_every_trial_lies_in_its_space(pair):
    """The preset first, and the options that all trials share are those of the space."""
    search = BY_RULE[pair]
    space = [json.dumps(options, sort_keys=True) for options in spaces.trials(*pair)]
    assert search[0].setting == {}
    assert {json.dumps(trial.setting, sort_keys=True) for trial in search} <= set(space)
    assert all(trial.shared == spaces.shared(*pair) for trial in search)
    assert all(trial.rule == spaces.space(*pair)["rule"] for trial in search)


HALF_A_DIGIT = {"lppd": 5e-4, "elbo": 0.05, "rhat": -5e-4, "ess": 0.5, "distance": -5e-3}
"""Half of the last digit that rows without gradients of their own were kept with; negative where less is better."""


def numbers(trial, favour):
    """The numbers that the rules look at, moved within what rounding has left open, for the trial or against it.

    The ESS a gradient is kept by itself: here each trial has a million gradients.
    """
    slack = favour if trial.num_grads is None else 0
    kept = {"ess": trial.ess_per_million_grads} | {
        key: getattr(trial, key) for key in ("lppd", "elbo", "rhat", "distance")
    }
    moved = {key: None if value is None else value + slack * HALF_A_DIGIT[key] for key, value in kept.items()}
    return scores.Score(status=trial.status, grads=1e6, mean_off=None, sd_ratio=None, **moved)


@pytest.mark.parametrize("pair", BY_RULE, ids=name)
def test_the_chosen_trial_is_one_that_the_rule_can_have_taken(pair):
    """Of all numbers that round to those of the rows, the ones that favour it most make the rule take it."""
    search = BY_RULE[pair]
    best = scores.choose(search[0].rule, [numbers(trial, 1 if trial.chosen else -1) for trial in search])
    assert [trial.trial for trial in search if trial.chosen] == ([] if best is None else [best])


def test_a_search_is_appended_once_and_whole(file):
    """The same search changes nothing; another one of the pair gets the next number and is in force."""
    first = [a_trial(trial=0, chosen=False), a_trial(trial=1, setting={"step_size": 1e-4})]
    assert trials.append(first, file)
    assert not trials.append(first, file)
    assert trials.append([a_trial(distance=float("nan"))], file)
    assert not trials.append([a_trial(distance=float("nan"))], file)
    rows = trials.read(file)
    assert [(row.search, row.trial) for row in rows] == [(1, 0), (1, 1), (2, 0)]
    assert trials.in_force(rows) == {("diabetes", "sgld"): rows[2:]}


def test_a_crash_while_appending_leaves_the_old_rows(file, monkeypatch):
    trials.append([a_trial()], file)
    before = file.read_bytes()

    def crash(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", crash)
    with pytest.raises(OSError, match="no space"):
        trials.append([a_trial(method="sghmc")], file)
    assert file.read_bytes() == before
    assert not list(file.parent.glob("*.tmp"))


def test_searches_that_are_appended_at_once_are_all_kept(file):
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda i: trials.append([a_trial(num_grads=float(i))], file), range(8)))
    assert all(done)
    rows = trials.read(file)
    assert [row.search for row in rows] == list(range(1, 9))
    assert {row.num_grads for row in rows} == set(range(8))


def test_other_columns_are_refused():
    with pytest.raises(ConfigError, match=r"trials\.csv has the columns \['a', 'b'\]: give it data, method"):
        trials.decode("a,b\n1,2\n")


# ---- the files that are written from them


@pytest.mark.slow
def test_tuned_files_are_what_the_trials_say():
    """No file more and none less: neither may be changed without the other."""
    wanted = {file: text for file, text in write.files(ROWS).items() if text is not None}
    assert wanted == {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.yaml")}


def test_a_file_is_written_only_where_it_says_something(tmp_path):
    """A choice that is the preset, in whatever words, has no file, and an older file of the pair goes."""
    own = tmp_path / "diabetes_map.yaml"
    own.write_text("# of a pair without trials\n", encoding="utf-8")
    plain = {"shared": {}, "setting": {"step_size": 1e-5, "schedule.num_samples": 1000}}
    assert write.write([a_trial()], tmp_path) == ["wrote diabetes_sgld.yaml"]
    assert write.write([a_trial()], tmp_path) == []
    assert write.write([a_trial(), a_trial(search=2, **plain)], tmp_path) == ["removed diabetes_sgld.yaml"]
    assert write.content([a_trial(chosen=False)]) is None
    assert list(tmp_path.iterdir()) == [own]


def test_a_written_file_composes_to_the_setting(tmp_path):
    """Nested options are merged, a list of stages is taken as a whole."""
    before = [{"_target_": "f", "schedule": {"num_warmup": 1}}]
    preset = {"_target_": "g", "rate": {"_target_": "r", "a": 1.0, "b": 2.0}, "n": 1, "before": []}
    found = {**preset, "rate": {"_target_": "r", "a": 1.0, "b": 3.0}, "before": before}
    assert write.difference(found, preset) == {"rate": {"b": 3.0}, "before": before}
    assert write.difference(preset, preset) == {}


# ---- the search itself


def test_tuning_appends_what_it_found_and_writes_its_file(tmp_path, file, monkeypatch):
    """A failed trial and one that was refused are rows like any other, and the price is that of all."""
    found = [
        scores.Score("complete", 10.0, -1.0, *[None] * 6),
        scores.Score("complete", 20.0, -0.5, *[None] * 6),
        scores.Score("diverged", 5.0, *[None] * 7),
        scores.Score("refused", 0.0, *[None] * 7),
    ]
    tried = [{}, {"optimizer.learning_rate": 0.001}, {"optimizer.learning_rate": 0.1}, {"optimizer.learning_rate": 9.0}]
    monkeypatch.setattr(tune, "fresh", lambda data, method: tried)
    monkeypatch.setattr(tune, "run_trials", lambda *_: found)
    monkeypatch.setattr(scores, "score", lambda store, record, known: record)
    monkeypatch.setattr(trials.append, "__defaults__", (file,))
    monkeypatch.setattr(trials.read, "__defaults__", (file,))
    monkeypatch.setattr(tune, "conf_dir", lambda: tmp_path)
    (tmp_path / "tuned").mkdir()
    assert (
        tune.tune(str(tmp_path / "store"), "diabetes", "map", quick=True) == "quick: would choose learning_rate 0.001"
    )
    assert trials.read(file) == []
    said = tune.tune(str(tmp_path / "store"), "diabetes", "map", quick=False)
    assert said == "chose learning_rate 0.001; wrote diabetes_map.yaml"
    rows = trials.read(file)
    assert [(row.search, row.trial, row.status, row.num_grads, row.chosen) for row in rows] == [
        (1, 0, "complete", 10, False),
        (1, 1, "complete", 20, True),
        (1, 2, "diverged", 5, False),
        (1, 3, "refused", 0, False),
    ]
    assert {row.search_num_grads for row in rows} == {35}
    assert [row.setting for row in rows] == tried
    assert rows[0].network == {"name": "mlp", "width": 50, "depth": 1, "activation": "tanh"}
    text = (tmp_path / "tuned" / "diabetes_map.yaml").read_text(encoding="utf-8")
    assert "tuning_num_grads: 35\n" in text


# ---- what a run makes of it


MLP = "network: {name: mlp, width: 50, depth: 1, activation: tanh}"
AT = ["data=diabetes", "inference=sgld"]


@pytest.mark.parametrize(
    "chosen", [AT, ["experiment=cosine_gap", "inference=nuts"], [*AT, "~tuned", "network.width=20"]]
)
def test_nothing_is_said_of_a_match_or_of_untuned_settings(chosen):
    config, labels = compose(chosen)
    assert bool(config["tuned_for"]) == ("~tuned" not in chosen)
    assert tuned.warnings(config, labels, "regression") == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["network.width=20"], "network.width=50, not for network.width=20"),
        (["prior=iid"], "prior=fan_in, not for prior=iid"),
        (["prior=iid", "network.depth=2"], "network.depth=1 and prior=fan_in, not for network.depth=2 and prior=iid"),
        (["likelihood.noise.scale=2"], "likelihood.noise.scale=1.0, not for likelihood.noise.scale=2"),
        (["likelihood.noise=null"], "likelihood.noise=LogNormal, not for likelihood.noise=None"),
        (
            ["likelihood=gaussian_uniform_noise"],
            "likelihood=gaussian, not for likelihood=gaussian_uniform_noise",
        ),
        (
            ["model=eight_schools"],
            "network=mlp and prior=fan_in and likelihood=gaussian, not for network=none and prior=none and likelihood=none",
        ),
    ],
)
def test_a_mismatch_is_one_sentence(changed, said):
    assert tuned.warnings(*compose([*AT, *changed]), "regression") == [f"the settings were tuned for {said}"]


def test_tuned_for_and_its_price_name_no_run():
    """The id is that of the same settings without them."""
    config, labels = compose(AT)
    assert config["tuned_for"] and config["tuning_num_grads"]
    bare = {key: value for key, value in config.items() if key not in ("tuned_for", "tuning_num_grads")}
    ids = {make_job(each, labels).id for each in (config, bare, {**config, "tuned_for": None, "tuning_num_grads": 1})}
    assert len(ids) == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tuned_for": "mlp"}, "tuned_for='mlp' must be null, or hold network, prior and likelihood"),
        ({"tuned_for": {"data": {"name": "diabetes"}}}, "tuned_for=.* must be null"),
        ({"tuned_for": {"network": {"width": 50}}}, "tuned_for=.* must be null"),
        ({"tuning_num_grads": -1}, "tuning_num_grads=-1 must be a number of gradients"),
        ({"tuning_num_grads": True}, "tuning_num_grads=True must be a number"),
        ({"tuning_num_grads": "many"}, "tuning_num_grads='many' must be a number"),
    ],
)
def test_what_is_no_tuning_is_refused(changed, message):
    config, labels = compose(["data=diabetes", "inference=map"])
    with pytest.raises(ConfigError, match=message):
        make_job({**config, **changed}, labels)


@pytest.mark.slow
def test_a_record_has_the_price_and_the_warning(store_path):
    """And the table shows the price in a column of its own; a run without tuned settings has no such number."""
    short = "inference.schedule={num_chains: 1, num_warmup: 2, num_samples: 2, thinning: 1, batch_size: 8}"
    common = [*AT, short, "inference.before=[]", f"store.path={store_path}", "progress=off", "network.width=4"]
    priced = run([*common])
    plain = run([*common, "~tuned", "seed=1"])
    price = SEARCHES["diabetes", "sgld"][0].search_num_grads
    assert priced["tuning_num_grads"] == price
    assert priced["config"]["tuned_for"]["network"]["width"] == 50
    assert "the settings were tuned for network.width=50, not for network.width=4" in priced["warnings"]
    assert plain["tuning_num_grads"] is None
    assert not any("tuned for" in warning for warning in plain["warnings"])
    assert sum(priced["num_grads"].values()) < 10  # the tuning's price is no part of it
    frame = Store(store_path).runs()
    assert sorted(frame["tuning_num_grads"].fillna(-1)) == [-1, price]
    found = contents([priced, plain])
    column = found.columns.index("tuning")
    assert column == found.columns.index("gradients") + 1
    assert [cells[column] for _, cells_of in found.sections for cells in cells_of] == ["101.4k", "–"]
    assert "tuning" not in contents([plain]).columns


def test_records_from_before_there_was_a_price_stay_in_their_row():
    """Runs that differ in seed alone are one row, whether their configuration names what they were tuned for or not."""
    config, labels = compose(AT)
    record = {"status": "complete", "labels": labels, "metrics": {}, "seconds": {}, "num_grads": {}, "warnings": []}
    old = {key: value for key, value in config.items() if key not in ("tuned_for", "tuning_num_grads")}
    both = [{**record, "config": config, "tuning_num_grads": 5}, {**record, "config": {**old, "seed": 1}}]
    ((_, rows),) = contents(both, aggregate=True).sections
    assert len(rows) == 1


# ---- what there is


def test_the_report_tells_the_state_of_each_pair(capsys):
    assert report.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "diabetes sgld: tuned" in lines
    assert "diabetes map: the preset was best" in lines
    assert "cosine_gap nuts: tuned, by hand" in lines
    assert any(line.startswith("digits svi_flow: not tuned, because the network has 3,760 weights") for line in lines)


def test_the_report_names_what_has_not_been_tried():
    """A pair without trials, a method without a space, and a space that was widened are told and break nothing."""
    search = [row for row in SEARCHES["diabetes", "map"] if row.trial < 2]
    searches = {("diabetes", "map"): search}
    assert (
        report.state("diabetes", "map", searches) == "the preset was best, but 3 trials of its space have not been run"
    )
    assert report.state("diabetes", "nuts", searches) == "not tuned"
    assert report.state("diabetes", "new", searches) == "not tuned: spaces.yaml has no space for this method"
    lost = {("diabetes", "map"): [dataclasses.replace(row, chosen=False) for row in SEARCHES["diabetes", "map"]]}
    assert report.state("diabetes", "map", lost) == "no trial was complete"


def test_the_report_lists_trials_with_what_they_came_to(capsys):
    assert report.main(["diabetes", "sgld"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "diabetes sgld, rule distance, 101,413 gradients"
    assert lines[3] == "  * step_size 0.0001: distance 0.10 (mean off 0.08, sd x 1.04), R-hat 1.087, ESS 35"
    with pytest.raises(SystemExit):
        report.main(["nowhere"])


def test_every_exception_is_of_a_pair():
    known = {f"{data}_{method}" for data in spaces.DATA for method in spaces.METHODS}
    assert set(report.EXCEPTIONS) <= known
    assert all(reason.strip() for reason in report.EXCEPTIONS.values())
