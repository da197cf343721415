"""A store is data: reading or deleting somebody's results runs nothing and touches nothing outside of the store."""

import json
import os
import pickle
import re
import zipfile

import numpy as np
import pytest
import zarr
from archives import NAME, entries, rewrite, unpacked

from bdlbench.cli.results import main as results
from bdlbench.errors import ConfigError
from bdlbench.report.escaping import markdown, printable
from bdlbench.store import Store, StoreError
from bdlbench.store.records import own_checksum

RECORD = {
    "status": "complete",
    "labels": {"data": "toy", "inference": "nuts"},
    "metrics": {"lppd": -1.25},
    "seconds": {"sample": 1.0},
    "num_grads": {"warmup": 1.0, "sample": 2.0},
    "device": "cpu",
    "versions": {},
    "warnings": [],
}


@pytest.fixture
def store(store_path):
    """A store with two sound runs."""
    made = Store(store_path)
    for name in ("one", "two"):
        with made.writer(name, {"seed": 0}) as writer:
            writer.allocate("posterior", "w", (1, 4), np.float32, ["chain", "draw"])
            writer.write("posterior", "w", 0, np.zeros((1, 4), np.float32))
            writer.finish(RECORD)
    return made


def spoil_as_folder(path):
    path.unlink()
    path.mkdir()


def spoil_as_loop(path):
    path.unlink()
    path.symlink_to(path)


def spoil_as_pipe(path):
    path.unlink()
    os.mkfifo(path)


def spoil_as_depth(path):
    path.write_text("[" * 100_000 + "]" * 100_000 + "\n")


def spoil_as_huge(path):
    with open(path, "wb") as file:
        file.truncate(2**29)


SPOILED = {
    "folder": spoil_as_folder,
    "loop": spoil_as_loop,
    "pipe": spoil_as_pipe,
    "depth": spoil_as_depth,
    "huge": spoil_as_huge,
}


@pytest.mark.parametrize("how", SPOILED)
def test_one_bad_record_is_named_and_hides_no_other(store, how):
    """Whatever stands in the place of a record, reading neither waits nor fails."""
    SPOILED[how](store.path / "one" / "run.json")
    with pytest.warns(UserWarning, match="one"):
        assert [row["id"] for row in store.rows()] == ["two"]
    with pytest.warns(UserWarning, match="one"):
        assert list(store.sql("select id from runs")["id"]) == ["two"]
    with pytest.raises(StoreError):
        store.record("one")
    assert store.verify("one")


@pytest.mark.parametrize("how", [spoil_as_folder, spoil_as_loop, spoil_as_pipe, spoil_as_depth])
@pytest.mark.parametrize("name", ["curve.jsonl", "config.yaml"])
def test_a_file_that_cannot_be_read_stops_no_command(store, how, name, capsys):
    """Commands that read curves and configurations name the run, neither wait nor fail, and show the other runs."""
    for id in ("half", "sound"):
        with pytest.raises(KeyboardInterrupt), store.writer(id, {"inference": {}}) as writer:
            writer.append_curve({"phase": "sample", "num_draws": 4, "num_grads": 3.0, "seconds": 1.0})
            raise KeyboardInterrupt
    for id in ("half", "one"):
        how(store.path / id / name)
    expected = [
        (["tail", "half"], 1, None), (["tail", "sound"], 0, "sampling, 4"), (["list", "--unfinished"], 0, "sampling, 4"),
        (["verify"], 1, "1 damaged"), (["frontier"], 0, "one is left out" if name == "curve.jsonl" else ""),
    ]  # fmt: skip
    for command, code, words in expected:
        assert results([*command, "--store", str(store.path)]) == code
        told = capsys.readouterr()
        if words is None:
            assert re.fullmatch(
                rf"bdlbench-results: .*{name}.*\.\n|bdlbench-results: The curve of run half .*\n", told.err
            )
        else:
            assert words in told.out + told.err


ODD = [
    {"metrics": {"lppd": "high"}}, {"metrics": {"lppd": [1.0]}}, {"metrics": {"lppd": 10**400}}, {"seconds": {"sample": "x"}},
    {"labels": {"data": {"a": 1}}}, {"labels": 3}, {"warnings": [3]}, {"not_assessed": 3}, {"status": "odd"},
    {"files": [1]}, {"files": {"posterior.zip": 1}}, {"config": 3}, {"nonfinite": 3}, {"nonfinite": {"/no/such": "NaN"}},
    {"reason": "\ud800"},
]  # fmt: skip


@pytest.mark.parametrize("odd", ODD, ids=str)
def test_a_record_of_another_form_is_named_and_hides_no_other(store, odd, capsys):
    """A field of another type under a checksum that fits stops neither the table of runs nor any other command."""
    path = store.path / "one" / "run.json"
    record = {**json.loads(path.read_text()), **odd}
    record["record_sha256"] = "none" if "reason" in odd else own_checksum(record)
    path.write_text(json.dumps(record))
    for command in (["list"], ["table"], ["compare", "--metric", "lppd", "--delta", "1"]):
        assert results([*command, "--store", str(store.path)]) in (0, 2)
        assert "one;" in capsys.readouterr().err
    assert results(["verify", "--store", str(store.path)]) == 1
    assert "2 runs checked, 1 damaged" in capsys.readouterr().out
    assert not store.has("one")


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_a_lock_that_is_no_file_hides_no_other_run(store, make):
    """A folder or a pipe in the place of a lock file is held by nobody, and asking does not wait."""
    for name in ("three", "four"):
        (store.path / name).mkdir()
    make(store.path / "three" / ".lock")
    assert [store.holder(id) for id in store.unfinished()] == [None, None]


def test_a_changed_digit_is_said_wherever_runs_are_listed(store):
    """The table of runs reads no number that does not fit its record's checksum."""
    path = store.path / "one" / "run.json"
    path.write_text(path.read_text().replace("-1.25", "-0.25"))
    for read in (store.rows, store.runs, lambda: store.sql("select * from runs")):
        with pytest.warns(UserWarning, match="one"):
            assert len(read()) == 1


def test_a_record_counts_in_its_own_folder_only(store):
    """A record copied elsewhere would have another run deleted in its name."""
    path = store.path / "one" / "run.json"
    path.write_bytes((store.path / "two" / "run.json").read_bytes())
    with pytest.raises(StoreError, match="another run"):
        store.record("one")
    with pytest.warns(UserWarning, match="one"):
        assert [row["id"] for row in store.rows()] == ["two"]


def test_a_run_folder_that_is_a_link_is_left_alone(store, tmp_path):
    """Neither writing, reading, deleting nor setting aside touches what it points to."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    (store.path / "linked").symlink_to(precious)
    for act in (
        lambda: store.writer("linked", {}, overwrite=True).__enter__(),
        lambda: store.delete("linked"),
        lambda: store.set_aside("linked"),
        lambda: store.posterior("linked"),
    ):
        with pytest.raises(StoreError, match="symbolic link"):
            act()
    assert (precious / "thesis.txt").read_text() == "years of work"
    assert sorted(os.listdir(precious)) == ["thesis.txt"]


def test_the_root_of_a_store_may_be_a_link(store, tmp_path):
    """A user keeps results on another disk."""
    link = tmp_path / "link"
    link.symlink_to(store.path)
    assert len(Store(link).rows()) == 2


class Payload:
    """What runs if it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (os.environ["BDLBENCH_TEST_PAYLOAD"],)


def test_draws_that_would_run_code_are_refused_before_they_are_opened(store, tmp_path, monkeypatch):
    """An array of objects, read by a codec that unpickles, as a second-version array of Zarr may have."""
    mark = tmp_path / "ran"
    monkeypatch.setenv("BDLBENCH_TEST_PAYLOAD", str(mark))
    place = unpacked(store.path / "one") / "posterior" / "evil"
    place.mkdir()
    (place / ".zarray").write_text(
        json.dumps(
            {
                "zarr_format": 2, "shape": [1], "chunks": [1], "dtype": "|O", "compressor": None, "fill_value": None,
                "order": "C", "filters": [{"id": "pickle", "protocol": 5}],
            }
        )
    )  # fmt: skip
    (place / "0").write_bytes(pickle.dumps(np.array([Payload()], object)))
    with pytest.raises(StoreError, match="zarray"):
        store.posterior("one")
    assert not mark.exists()


@pytest.mark.parametrize(
    "change", [{"data_type": "bytes"}, {"codecs": [{"name": "numcodecs.pickle"}]}, {"zarr_format": 2}]
)
def test_unknown_types_and_codecs_are_refused(store, change):
    """Numbers, truth values and text, in the codecs that are written here."""
    name = "posterior/w/zarr.json"
    rewrite(
        store.path / "one", lambda files: files.update({name: json.dumps(json.loads(files[name]) | change).encode()})
    )
    with pytest.raises(StoreError, match="not read"):
        store.posterior("one")
    (unpacked(store.path / "two") / name).write_bytes(entries(store.path / "one")[name])
    with pytest.raises(StoreError, match="not read"):
        store.posterior("two")


def test_an_archive_of_compressed_files_is_refused(store):
    """A few bytes could become more than the memory holds."""
    files = entries(store.path / "one")
    with zipfile.ZipFile(store.path / "one" / NAME, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    with pytest.raises(StoreError, match="compressed"):
        store.posterior("one")
    (store.path / "two" / NAME).write_bytes(b"no archive")
    with pytest.raises(StoreError, match="cannot be read"):
        store.posterior("two")


def test_what_is_written_here_is_read_here(store):
    """The list of types and codecs has all that the writer uses."""
    with store.posterior("two") as tree:
        assert tree["posterior"]["w"].shape == (1, 4)
    assert zarr.__version__


@pytest.mark.parametrize(
    "query",
    [
        "select * from read_csv('{file}')",
        "copy (select 1) to '{file}'",
        "install httpfs",
        "set enable_external_access = true",
        "attach '{file}'",
    ],
)
def test_a_query_sees_the_table_alone(store, tmp_path, query):
    """No files, no extensions, and no way to allow them."""
    file = tmp_path / "secret.csv"
    file.write_text("a\n1\n")
    with pytest.raises(ConfigError, match="sql"):
        store.sql(query.format(file=file))
    assert file.read_text() == "a\n1\n"


def test_text_of_others_is_shown_as_text():
    """No escape sequence reaches a terminal, and nothing that Markdown acts on reaches a page."""
    assert printable("a\x1b[2Jb\u202e\nc") == "a\\x1b[2Jb\\u202e\\nc"
    assert markdown("x|y\n<img src=a> [b](c) `d` *e*") == "x\\|y \\<img src=a> \\[b\\](c) \\`d\\` \\*e\\*"
