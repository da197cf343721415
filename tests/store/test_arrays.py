"""The draws: written block by block, read by xarray and ArviZ."""

import numpy as np
import pytest
import xarray as xr
from archives import rewrite, unpacked
from zarr.storage import ZipStore

from bdlbench.store import layout
from bdlbench.types import ConfigError

CHAINS, DRAWS, WIDTH = 2, 23, 3
DIMS = ("chain", "draw", "weight")


def normal(*shape):
    """Standard normal draws from a fixed key."""
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def write_blocks(writer, group, name, values, block):
    """Write draws in blocks of which the last is short."""
    for start in range(0, values.shape[1], block):
        writer.write(group, name, start, values[:, start : start + block])


@pytest.mark.parametrize(("block", "chunk"), [(1, 5), (5, 5), (7, 5), (23, None)])
def test_blocks_equal_the_whole(store, block, chunk, config, record_of):
    """Writing in blocks, aligned with chunks or not, stores the bits of the whole array."""
    values = normal(CHAINS, DRAWS, WIDTH)
    with store.writer("run", config) as writer:
        writer.allocate("posterior", "w", values.shape, "float32", DIMS, {"weight": ["a", "b", "c"]}, chunk)
        write_blocks(writer, "posterior", "w", values, block)
        np.testing.assert_array_equal(writer.read_columns("posterior", "w", 1, 3), values[..., 1:3])
        assert writer.finish(record_of())["warnings"] == []
    w = store.posterior("run")["posterior"]["w"]
    assert w.dims == DIMS
    assert w.coords["weight"].values.tolist() == ["a", "b", "c"]
    assert w.coords["draw"].values.tolist() == list(range(DRAWS))
    np.testing.assert_array_equal(w.values, values)


def test_groups_of_test_rows_have_the_names_of_schema_2_whenever_they_were_stored(store, config, record_of):
    """A run of schema 1 called them as ArviZ calls what belongs to training rows, whose loo took test rows for these."""
    values = normal(CHAINS, DRAWS, WIDTH)
    before = ("posterior_predictive", "log_likelihood", "observed_data")
    with store.writer("earlier", config) as writer:
        for group in before[:2]:
            writer.allocate(group, "y", values.shape, "float32", ("chain", "draw", "row"))
            write_blocks(writer, group, "y", values, 50)
        writer.allocate("observed_data", "y", (WIDTH,), "float32", ("row",))
        writer.write("observed_data", "y", 0, values[0, 0])
        writer.finish(record_of() | {"schema": 1})
    with store.posterior("earlier") as tree:
        assert set(tree.children) == {"predictions", "log_likelihood_test", "predictions_constant_data"}
        np.testing.assert_array_equal(tree["log_likelihood_test"]["y"].values, values)
        np.testing.assert_array_equal(tree["predictions_constant_data"]["y"].values, values[0, 0])
    assert store.record("earlier")["schema"] == 1 and not store.verify("earlier")


def test_arviz_reads_it(store, config, record_of):
    """ArviZ summarises the stored tree as it does the same draws handed to it in memory."""
    import arviz as az

    w, sigma = normal(CHAINS, 100, WIDTH), np.exp(normal(CHAINS, 100))
    with store.writer("run", config) as writer:
        writer.allocate("posterior", "w", w.shape, "float32", DIMS, chunk_draws=50)
        writer.allocate("posterior", "sigma", sigma.shape, "float32", ("chain", "draw"), chunk_draws=50)
        writer.allocate("sample_stats", "diverging", sigma.shape, bool, ("chain", "draw"), chunk_draws=50)
        writer.allocate("observed_data", "y", (4,), "int64", ("y_dim_0",))
        write_blocks(writer, "posterior", "w", w, 50)
        write_blocks(writer, "posterior", "sigma", sigma, 50)
        write_blocks(writer, "sample_stats", "diverging", sigma > 2, 50)
        writer.write("observed_data", "y", 0, np.arange(4))
        writer.finish(record_of())
    tree = store.posterior("run")
    assert set(tree.children) == {"posterior", "sample_stats", "observed_data"}
    assert tree["sample_stats"]["diverging"].dtype == bool
    assert tree["observed_data"]["y"].values.tolist() == [0, 1, 2, 3]
    memory = az.from_dict({"posterior": {"w": w, "sigma": sigma}}, dims={"w": ["weight"]})
    memory = memory.map_over_datasets(lambda group: group.drop_vars("weight", errors="ignore"))
    xr.testing.assert_equal(az.summary(tree, fmt="xarray"), az.summary(memory, fmt="xarray"))


def test_an_early_end_leaves_no_zeros(store, config, record_of):
    """Draws that were allocated but never made are not there; a variable that lags cuts its group, and says so."""
    values = normal(CHAINS, DRAWS, WIDTH)
    with store.writer("run", config) as writer:
        for name in ("w", "late"):
            writer.allocate("posterior", name, values.shape, "float32", DIMS, chunk_draws=5)
        writer.allocate("sample_stats", "n", (CHAINS, DRAWS), "int32", ("chain", "draw"))
        writer.allocate("log_likelihood", "y", (CHAINS, DRAWS), "float32", ("chain", "draw"))
        write_blocks(writer, "posterior", "w", values[:, :12], 4)
        write_blocks(writer, "posterior", "late", values[:, :8], 4)
        write_blocks(writer, "sample_stats", "n", np.ones((CHAINS, 12), "int32"), 4)
        record = writer.finish(record_of(status="diverged", reason="log density is nan at step 12"))
    tree = store.posterior("run")
    assert tree["posterior"].sizes["draw"] == 8
    assert tree["posterior"].coords["draw"].values.tolist() == list(range(8))
    np.testing.assert_array_equal(tree["posterior"]["w"].values, values[:, :8])
    np.testing.assert_array_equal(tree["sample_stats"]["n"].values, np.ones((CHAINS, 12)))
    assert "log_likelihood" not in tree.children
    assert record["warnings"] == [
        "log_likelihood/y was not stored: nothing was written to it.",
        "posterior: w cut to the 8 draws that the others have.",
    ]
    assert store.verify("run") == []


def test_a_run_without_draws_has_no_tree(store, make_run, config, record_of):
    """Nothing written, nothing read: the failed run has no posterior, and asking for it is a clear error."""
    with store.writer("run", config) as writer:
        writer.allocate("posterior", "w", (1, 4), "float32", ("chain", "draw"))
        writer.finish(record_of(status="failed", reason="out of memory"))
    assert not (store.path / "run" / "posterior.zarr").exists()
    with pytest.raises(ConfigError, match="stored no draws"):
        store.posterior("run")


def test_reading_is_lazy(store, config, record_of):
    """Opening reads no chunk: with the chunks gone the tree still opens."""
    values = normal(CHAINS, DRAWS, WIDTH)
    with store.writer("run", config) as writer:
        writer.allocate("posterior", "w", values.shape, "float32", DIMS)
        writer.write("posterior", "w", 0, values)
        writer.finish(record_of())
    rewrite(store.path / "run", lambda files: files.update({"posterior/w/c/0/0/0": b"broken"}))
    w = store.posterior("run")["posterior"]["w"]
    with pytest.raises(Exception, match=r"(?i)checksum|buffer|blosc|codec|input"):
        w.load()


def test_a_store_of_version_1_is_read(store, config, record_of):
    """There the draws are a folder, not an archive."""
    values = normal(CHAINS, DRAWS, WIDTH)
    with store.writer("run", config) as writer:
        writer.allocate("posterior", "w", values.shape, "float32", DIMS)
        writer.write("posterior", "w", 0, values)
        writer.finish(record_of())
    unpacked(store.path / "run")
    np.testing.assert_array_equal(store.posterior("run")["posterior"]["w"].values, values)


@pytest.mark.parametrize("in_pieces", [False, True])
def test_packed_numbers_are_read_in_their_units(in_pieces, store, config, record_of):
    """float32 digits with a large offset are read as float64 numbers, by xarray and by the writer's own diagnostics."""
    values, scale, offset = normal(CHAINS, DRAWS, WIDTH), 1 / 3, 2e7 + 0.1
    expected = values.astype(np.float64) * scale + offset
    with store.writer("run", config) as writer:
        writer.allocate("predictions", "y", values.shape, "float32", DIMS, packing=(scale, offset))
        writer.write("predictions", "y", 0, values[:, :9])
        if in_pieces:
            writer.checkpoint({})
        writer.write("predictions", "y", 9, values[:, 9:])
        np.testing.assert_array_equal(writer.read_columns("predictions", "y", 1, 3), expected[..., 1:3])
        writer.finish(record_of())
    found = store.posterior("run")["predictions"]["y"]
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found.values, expected)
    assert sum(1 for _ in (store.path / "run").rglob("*")) <= 40


def test_a_scalar_site_is_one_column(store, config):
    """Diagnostics by columns need no special case for scalars."""
    values = normal(CHAINS, DRAWS)
    with store.writer("run", config) as writer:
        writer.allocate("posterior", "sigma", values.shape, "float32", ("chain", "draw"))
        writer.write("posterior", "sigma", 0, values[:, :9])
        np.testing.assert_array_equal(writer.read_columns("posterior", "sigma", 0, 1), values[:, :9, None])


def test_a_chunk_is_bounded():
    """A chunk stays under its limit by splitting the last axis, or the draws where no block is asked for."""
    f32 = np.dtype("float32")
    assert layout.chunks((4, 1000, 600), f32, True, 100) == (4, 100, 600)
    for shape, has_draws, draws in [
        ((4, 1000, 10**6), True, 100),
        ((4, 10**6, 50), True, None),
        ((10**8,), False, None),
    ]:
        chunks = layout.chunks(shape, f32, has_draws, draws)
        assert np.prod(chunks) * 4 <= layout.CHUNK_BYTES
        assert np.prod(chunks) * 4 > layout.CHUNK_BYTES / 4


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda w: w.write("posterior", "w", 5, normal(2, 3, 3)), ValueError, "do not follow the 0 written"),
        (lambda w: w.write("posterior", "w", 0, normal(2, 30, 3)), ValueError, "do not follow"),
        (lambda w: w.write("posterior", "w", 0, normal(2, 3, 4)), ValueError, "has shape"),
        (lambda w: w.write("posterior", "w", 0, np.zeros((2, 3, 3))), TypeError, "holds float32, not float64"),
        (lambda w: w.write("posterior", "v", 0, normal(2, 3, 3)), ValueError, "not allocated"),
        (lambda w: w.allocate("prior", "v", (2,), "f4", ("a",)), ValueError, "none of"),
        (lambda w: w.allocate("posterior", "v", (2, 9), "f4", ("chain", "draw")), ValueError, "Dim draw has 23"),
        (lambda w: w.allocate("posterior", "v", (23, 2), "f4", ("draw", "chain")), ValueError, r"\(chain, draw"),
        (lambda w: w.allocate("posterior", "v", (2, 3), "f4", ("chain",)), ValueError, "cannot have the dims"),
        (lambda w: w.allocate("posterior", "v", (3,), "f4", ("weight",), {"weight": [1, 2]}), ValueError, "coordinate"),
        (lambda w: w.allocate("posterior", "v", (3,), "f4", ("weight",), {"weight": [7, 8, 9]}), ValueError, "differs"),
        (lambda w: w.allocate("posterior", "v", (3,), "U5", ("b",)), TypeError, "cannot hold"),
        (lambda w: w.allocate("posterior", "a/b", (3,), "f4", ("b",)), ConfigError, "rename it without"),
    ],
)
def test_what_does_not_fit_is_refused(store, call, error, message, config):
    """Gaps, wrong shapes and dtypes, clashing dims: nothing is cast, padded or overwritten in silence."""
    with store.writer("run", config) as writer:
        writer.allocate("posterior", "w", (CHAINS, DRAWS, WIDTH), "float32", DIMS, {"weight": [1, 2, 3]})
        with pytest.raises(error, match=message):
            call(writer)


def test_posteriors_of_one_form_have_the_files_of_posteriors_alone(tmp_path, monkeypatch):
    """The arrays of the posterior before are used again: values, labels and the time of making are each one's own."""

    def variables(seed, draws, label):
        values = np.random.default_rng(seed).normal(size=(CHAINS, DRAWS, WIDTH)).astype("float32")
        labels = {"chain": np.arange(CHAINS), "draw": np.arange(DRAWS), "weight": np.array([label, "b", "c"])}
        yield layout.Variable(
            "posterior", "w", values.shape, values.dtype, DIMS, values.shape, labels, waiting=[values[:, :draws]]
        )
        y = np.full(4, float(seed))  # constant chunks are written as others are
        yield layout.Variable("observed_data", "y", y.shape, y.dtype, ("row",), (4,), {}, waiting=[y])

    cases = [(0, DRAWS, "a"), (1, DRAWS, "a"), (2, 5, "a"), (3, 5, "other"), (0, 5, "other"), (0, DRAWS, "a")]
    for number, case in enumerate(cases):
        monkeypatch.setattr(layout, "attributes", lambda at=f"2020-01-0{number + 1}": {"created_at": at})
        layout.write_whole(tmp_path / f"in a row {number}.zip", list(variables(*case)))
    for number, case in enumerate(cases):
        monkeypatch.setattr(layout, "attributes", lambda at=f"2020-01-0{number + 1}": {"created_at": at})
        monkeypatch.setattr(layout, "_last", None)
        layout.write_whole(tmp_path / f"alone {number}.zip", list(variables(*case)))
        assert (tmp_path / f"in a row {number}.zip").read_bytes() == (tmp_path / f"alone {number}.zip").read_bytes()
    with xr.open_datatree(ZipStore(tmp_path / "in a row 1.zip"), engine="zarr") as tree:
        found = tree["posterior"]["w"].values
    np.testing.assert_array_equal(found, next(variables(*cases[1])).waiting[0])
