"""A stored run compared with another by the command, against the same numbers computed from its draws."""

import numpy as np

from bdlbench.cli.results import main
from bdlbench.metrics.fidelity import fidelity
from bdlbench.store import Store


def stored(store, id, draws, checksum="same", thinning=1):
    """A finished run with predictive means (C, S, rows)."""
    config = {"inference": {"schedule": {"num_chains": len(draws), "thinning": thinning}}}
    with store.writer(id, config) as writer:
        writer.allocate("predictions", "mean", draws.shape, draws.dtype, ["chain", "draw", "row"])
        writer.write("predictions", "mean", 0, draws)
        writer.finish(
            {
                "status": "complete", "labels": {}, "metrics": {}, "seconds": {}, "num_grads": {"sample": 500.0},
                "device": "cpu", "versions": {}, "warnings": [], "test_checksum": checksum, "target_id": id[0],
            }
        )  # fmt: skip


def test_fidelity_against_another_run(tmp_path, capsys):
    """Rows of more than 60 are thinned evenly, and a row at which the other run stands still is left out."""
    rng = np.random.default_rng(2)
    store = Store(tmp_path)
    mine, theirs = rng.normal(0.5, 1, (3, 40, 119)), rng.normal(size=(4, 50, 119))
    theirs[..., 2] = 1.0
    stored(store, "a-run", mine)
    stored(store, "b-run", theirs)
    stored(store, "c-run", theirs, checksum="other")
    rows = np.delete(np.arange(0, 119, 2), 1)
    expected = fidelity(mine[..., rows], theirs[..., rows])
    assert main(["fidelity", "a-run", "--against", "b", "--store", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f"worth                     {expected.worth} exact draws; jointly {expected.worth_joint}" in said
    assert f"bias in sd                {expected.bias.value:.3f} (" in said
    assert f"gradients per exact draw  {500 / expected.worth.value:.4g}" in said
    assert "Uncertified" in said and "different posteriors" in said and "Weak" not in said
    assert main(["fidelity", "a-run", "--against", "c-run", "--store", str(tmp_path)]) == 2
    assert "have other test rows" in capsys.readouterr().err


def test_export_has_the_layout_of_posteriordb(tmp_path, capsys):
    """Chains of draws by name, which give the float32 of the artefact back, and an info with what was checked."""
    import json
    import zipfile

    from bdlbench.cli.references import main as references
    from tests.support.references import references_in, write_reference

    draws = np.random.default_rng(0).normal(size=(4, 20, 3)).astype(np.float32)
    labels = [
        {"quantity": "probs", "kind": "test", "point": 0, "class": 0},
        {"quantity": "probs", "kind": "test", "point": 0, "class": 1},
        {"quantity": "site", "kind": "test", "site": "tau"},
    ]
    with references_in(tmp_path / "own"):
        write_reference(
            tmp_path / "own", "coin", options=["data=two_moons"], target_id="t", draws=draws, points=np.zeros((1, 2)),
            labels=labels, certified=False,
        )  # fmt: skip
        assert references(["export", "coin", "--output", str(tmp_path)]) == 0
        assert references(["show", "coin"]) == 0
        shown = capsys.readouterr().out
        shown = json.loads(shown[shown.index("{") :])
        assert (shown["options"], shown["certified"]) == (["data=two_moons"], False)
    root = tmp_path / "reference_posteriors" / "draws"
    with zipfile.ZipFile(root / "draws" / "coin.json.zip") as archive:
        chains = json.loads(archive.read("coin.json"))
    names = ["probs[1,1]", "probs[1,2]", "tau"]
    found = np.array([[chain[name] for name in names] for chain in chains], np.float32)
    np.testing.assert_array_equal(found, np.moveaxis(draws, -1, 1))
    info = json.loads((root / "info" / "coin.info.json").read_text())
    assert info["diagnostics"]["diagnostic_information"]["names"] == names
    assert (info["diagnostics"]["ndraws"], info["checks_made"]["certified"]) == (80, False)
