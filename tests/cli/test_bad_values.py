"""Bad values of every kind: each is refused in one sentence that names field, fault and remedy, and nothing is written.

They are composed and checked in this process. That a real command does the same is tested with a handful.
"""

import itertools
import re

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

from bdlbench.cli.command import ours
from bdlbench.cli.launcher import Composer
from bdlbench.runs.configuration import conf_dir
from bdlbench.runs.outcome import Outcome, sentence
from bdlbench.runs.progress import Silent
from bdlbench.runs.sweep import Plan

NO_NUMBER = ["foo", "true", "[1]", "'{a: 1}'", "''", "null"]
NO_WHOLE = [*NO_NUMBER, "1.5", "nan", "inf"]
NO_TEXT = ["3", "[a]", "null"]
NOT_FINITE = ["nan", "inf", "-inf"]


def each(base: str, field: str, values: list[str]) -> list[tuple[str, str]]:
    """Make overrides that give a field each of these values, and return them with the field."""
    return [(f"{base} {field}={value}".strip(), field) for value in values]


NUMBERS = [
    *each("inference=sgld", "inference.step_size", [*NO_NUMBER, *NOT_FINITE, "0", "-1", "1e-50"]),
    *each("inference=sgld", "inference.decay", [*NO_NUMBER, *NOT_FINITE, "-1"]),
    *each("inference=sgld", "inference.decay_steps", [*NO_NUMBER, *NOT_FINITE, "0"]),
    *each("inference=nuts", "inference.target_accept_prob", [*NO_NUMBER, *NOT_FINITE, "0", "1", "2"]),
    *each("inference=nuts", "inference.max_tree_depth", [*NO_WHOLE, "0", "-1"]),
    *each("inference=nuts", "inference.dense_mass", ["3", "foo", "null", "[1]"]),
    *each("inference=map", "inference.optimizer.learning_rate", ["foo", "true", "''", "null", *NOT_FINITE, "-1", "0"]),
    *each("", "temperature", [*NO_NUMBER, *NOT_FINITE, "0", "-1", "1e39", "1e-50"]),
    *each("", "seed", [*NO_WHOLE, "-1", "4294967296", "1e20"]),
    *each("", "data.split", [*NO_WHOLE, "-1"]),
    *each("", "data.test_fraction", [*NO_NUMBER, *NOT_FINITE, "-0.1", "1", "1.5"]),
    *each("", "data.validation_fraction", [*NO_NUMBER, *NOT_FINITE, "-0.1", "1", "1.5"]),
    *each("", "data.n_train", ["foo", "true", "[1]", "''", "1.5", "nan", "0", "-1", "100000"]),
    *each("", "network.width", [*NO_WHOLE, "0", "-1"]),
    *each("", "network.depth", [*NO_WHOLE, "-1", "100000"]),
    *each("prior=iid", "prior.scale", [*NO_NUMBER, *NOT_FINITE, "0", "-1", "1e39"]),
    *each("", "store.predictive_rows", [*NO_WHOLE, "0", "-1"]),
    *each("", "store.checkpoint_seconds", ["foo", "true", "[1]", "''", *NOT_FINITE, "-1"]),
    *each("", "limits.attempts", ["foo", "true", "[1]", "''", "1.5", "0", "-1"]),
    *each("", "tuning_num_grads", ["foo", "true", "[1]", "''", "nan", "-1"]),
]
SCHEDULES = [
    *each("", "inference.schedule.num_chains", [*NO_WHOLE, "0", "-1", "1000000000", "100000000000000000000"]),
    *each("", "inference.schedule.num_warmup", [*NO_WHOLE, "-1"]),
    *each("", "inference.schedule.num_samples", [*NO_WHOLE, "0", "-1"]),
    ("inference.schedule.num_samples=3000000000", "inference.schedule.num_warmup + num_samples"),
    *each("", "inference.schedule.thinning", [*NO_WHOLE, "-1"]),
    *each("inference=sgld", "inference.schedule.batch_size", ["foo", "true", "[1]", "''", "1.5", "0", "-1", "100000"]),
    *each("inference=sgld", "inference.schedule.batching", ["foo", "3", "true", "null", "''"]),
    *each("", "inference.schedule", ["3", "foo", "null", "[1]"]),
    *each("", "inference.before", ["3", "foo", "[1]", "[{a: 1}]"]),
    *each("", "inference.start", ["foo", "3", "null", "[prior]", "''"]),
]
TEXTS = [
    *each("", "rerun", ["maybe", "3", "null", "[true]", "''"]),
    *each("", "progress", ["foo", "3", "null", "true", "[auto]", "''"]),
    *each("", "limits.memory", ["maybe", "3", "null", "[off]", "''"]),
    *each("", "store.path", ["''", "' '", *NO_TEXT, "'~nobody-of-this-name/x'"]),
    *each("", "warm_start", ["nothing-like-it", "3", "true", "[a]", "''"]),
    *each("", "data.standardize", ["foo", "3", "null", "[x]", "''"]),
    *each("", "network.activation", ["foo", *NO_TEXT, "''"]),
    *each("", "report.aggregate", ["foo", "3", "null", "[true]"]),
    *each("", "paths.data", ["3", "true", "[a]"]),
    *each("", "paths.mirror", ["3", "true", "[a]"]),
    *each("", "tuned_for", ["3", "foo", "[a]"]),
]
NAMES = [
    *((f"{group}={value}", group) for group, value in itertools.product(
        ("data", "model", "network", "prior", "likelihood", "inference", "report", "experiment", "tuned"), ("foo",),
    )),
    ("data=x.npy", "data"),
    ("inference=nuts.yml", "did you mean nuts"),
    *((f"{group}={value}", "group") for group, value in itertools.product(
        ("data", "inference"), ("null", "3"))),
    ("metrics=[lpd]", "did you mean lppd"),
    ("metrics=[]", "metrics"),
    ("metrics=null", "group"),
    ("metrics.lppd=3", "metrics.lppd"),
    ("infrence=nuts", "did you mean inference"),
    ("inference.max_tree_dept=3", "did you mean max_tree_depth"),
    ("inference.schedule.num_chain=3", "did you mean num_chains"),
    ("sed=3", "did you mean seed"),
    ("+likelihod=gaussian", "did you mean likelihood"),
    ("++likelihod=gaussian", "did you mean likelihood"),
    ("+inferenc.step_size=1", "did you mean inference"),
    ("+foo=3", "foo"),
    ("+store.pth=x", "did you mean path"),
    ("+limits.foo=1", "limits.foo"),
    ("+inference.max_tree_dept=3", "did you mean max_tree_depth"),
    ("+inference.schedule.foo=3", "inference.schedule.foo"),
    ("+data.foo=1", "data.foo"),
    ("+network.widht=1", "did you mean width"),
    ("+prior.foo=1", "prior.foo"),
    ("+model.foo=1", "model.foo"),
    ("+report.foo=1", "report.foo"),
    ("+network._convert_=all", "network._convert_"),
    ("+network._recursive_=3", "network._recursive_"),
    ("seed='${foo}'", "foo"),
    ("seed='${oc.env:NO_SUCH_VARIABLE}'", "NO_SUCH_VARIABLE"),
    ("+inference=svi", "leave out the +"),
    ("+inference.schedule=3", "leave out the +"),
    ("tuned=diabetes_nut", "did you mean diabetes_"),
    *((f"~{name}", name) for name in ("store", "store.path", "data", "model", "inference", "seed", "temperature",
        "metrics", "rerun", "paths", "foo", "network", "data.split", "inference.schedule", "inference._target_",
        "network.width")),
    ("inference._target_=os.system", "os.system"),
    ("inference._target_=3", "inference"),
    ("inference.before.7.x=1", "inference.before.7"),
    ("inference.before.3=1", "inference.before.3"),
    ("inference.before.x.y=1", "inference.before"),
    ("inference.before.x=1", "inference.before"),
    ("network._target_=bdlbench.networks.mlp.NoNetwork", "network._target_"),
    ("seed=0,1", "--multirun"),
    ("inference=nuts,sgld", "--multirun"),
    ("inference=[nuts,sgld]", "inference"),
    *((f"data.path={value}", "hydra.cc") for value in ("a=b", "#x", "é.csv", "{a", "[a", "a(1", "~/x", "a\\'b")),
    ("seed", "hydra.cc"),
    ("inference.=3", "hydra.cc"),
    ("=3", "group"),
    ("data=csv", "data.path"),
    ("data=csv data.path=nowhere.csv data.target=y", "data.path"),
    ("data=npz data.path=nowhere.npz", "data.path"),
]  # fmt: skip
CASES = [*NUMBERS, *SCHEDULES, *TEXTS, *NAMES]


def test_there_are_enough():
    """The number of different cases is large enough."""
    assert len({overrides for overrides, _ in CASES}) >= 300


@pytest.fixture(scope="module")
def composer():
    """One composer for all cases, so that Hydra composes each choice of groups only once."""
    with hydra.initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", [], RunMode.MULTIRUN)
        yield Composer(loader, master)


def said(composer, overrides: list[str]) -> str | None:
    """The message with which a command with these overrides ends; None if they are accepted."""
    try:
        composed = composer.compose(overrides)
        outcome = Outcome()
        Plan([(*composed, "")], outcome, Silent())
    except (HydraException, OmegaConfBaseException, ValueError, TypeError, OSError) as error:
        return sentence(ours(error))
    return outcome.errors[0].removesuffix(" ()") if outcome.errors else None


def is_sentence(text: str) -> bool:
    """Whether a message is one line that ends as a sentence does and names no Python error and no place in the code."""
    raw = re.search(
        r"BDLBENCH_TRACEBACK|[a-z]Error\b|Exception\b|Traceback|[Cc]ould not (override|find|append)|struct", text
    )
    return raw is None and "\n" not in text and text[-1] in ".?" and (":" in text or " must " in text)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(NUMBERS, id="numbers", marks=pytest.mark.slow),
        pytest.param(SCHEDULES, id="schedules"),
        pytest.param(TEXTS, id="texts"),
        pytest.param(NAMES, id="names", marks=pytest.mark.slow),  # Hydra composes each of them
    ],
)
def test_each_bad_value_has_its_sentence(kind, composer, tmp_path, monkeypatch):
    """Every bad value is refused by a sentence that names the field, and no file is written anywhere."""
    monkeypatch.chdir(tmp_path)
    wrong = []
    for overrides, named in kind:
        given = re.split(r" (?=[\w~+.]+=)", overrides)
        asked = given if "store.path" in overrides or "~store" in overrides else [*given, "store.path=store"]
        text = said(composer, asked)
        if text is None or not is_sentence(text) or named not in text:
            wrong.append(f"{overrides}: {text}")
    assert not wrong, "\n".join(wrong)
    assert list(tmp_path.iterdir()) == []
