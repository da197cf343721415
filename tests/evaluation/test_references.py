"""Reference problems, and how they are sampled, kept, judged and read again."""

import json
import shutil

import numpy as np
import pytest
import yaml

from bdlbench.cli.references import main
from bdlbench.data.generated import linear_regression
from bdlbench.errors import ConfigError
from bdlbench.references import artefacts, problems
from bdlbench.references.problems import parse, problem

TINY = {
    "nuts": {"num_chains": 4, "num_warmup": 100, "num_samples": 40, "target_accept_prob": 0.8, "max_tree_depth": 5},
    "smc": {"num_runs": 2, "num_particles": 20, "num_moves": 2, "num_leapfrog_steps": 5, "num_warmup": 4,
            "num_samples": 1, "thinning": 1},
}  # fmt: skip


def test_problems_are_fixed_before_they_are_sampled():
    """At least twelve, with plans and thresholds of their own, whose change changes the hash; a comment does not."""
    names = problems.names()
    assert len(names) >= 12
    for name in names:
        text = (problems.folder() / name / "problem.yaml").read_text()
        found = problem(name)
        content = yaml.safe_load(text)
        assert parse(name, f"# a comment\n{text}").sha256 == found.sha256
        content["thresholds"]["ess"] = 1
        assert parse(name, yaml.safe_dump(content)).sha256 != found.sha256
        assert all({"seed", "nuts", "smc"} == set(plan) for plan in found.plans)
        assert all(plan["nuts"]["num_chains"] >= 8 and plan["smc"]["num_runs"] >= 7 for plan in found.plans)
        assert all(plan["smc"]["num_runs"] * plan["smc"]["num_particles"] >= 2000 for plan in found.plans)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"plans": []}, "write 1 to 3 plans down"),
        ({"plans": [{}] * 4}, "write 1 to 3 plans down"),
        ({"quantities": ["median"]}, "must be of mean, log_sd, probs"),
        ({"other": 1}, "problem.yaml must have"),
    ],
)
def test_a_problem_that_is_none_is_refused(change, sentence):
    content = yaml.safe_load((problems.folder() / "two_moons" / "problem.yaml").read_text())
    with pytest.raises(ConfigError, match=sentence):
        parse("two_moons", yaml.safe_dump(content | change))


def test_an_unknown_name_is_refused_with_the_known_ones(capsys):
    assert main(["show", "no_such_problem"]) == 2
    assert "choose one of breast_cancer" in capsys.readouterr().err


def test_what_ships_is_sound(capsys):
    """Checksums, hashes and certificates of every artefact; all of them together are at most 15 MB."""
    assert main(["check"]) == 0
    sizes = [path.stat().st_size for path in problems.folder().rglob("*") if path.is_file()]
    assert sum(sizes) <= 15e6
    for name in artefacts.available():
        found = artefacts.load(name)
        assert found.draws.shape[-1] == len(found.certificate["quantities"]) == len(found.kinds)
        assert np.isfinite(found.draws).all()


@pytest.mark.slow
def test_a_problem_is_sampled_judged_and_read_again(tmp_path, monkeypatch, capsys):
    """A line whose posterior is known, with a plan too short for a certificate, which says what has failed."""
    import jax

    from bdlbench.evaluation import reference_sampling
    from bdlbench.sampling.devices import computing_in

    folder = tmp_path / "references"
    (folder / "line").mkdir(parents=True)
    content = yaml.safe_load((problems.folder() / "linear_regression" / "problem.yaml").read_text())
    content["thresholds"]["level"] = 0.2  # 4 chains and 2 runs have 15 arrangements
    content |= {"plans": [{"seed": 1, **TINY}], "points": {"test": 3, "grid": [-10.0, 10.0, 2]}}
    (folder / "line" / "problem.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.setattr(problems, "folder", lambda: folder)
    problem.cache_clear()

    assert main(["make", "line", "--work", str(tmp_path / "work")]) == 1
    made = artefacts.load("line")
    assert not made.certified
    assert "ess" in " ".join(c["name"] for c in made.certificate["attempts"][0]["criteria"] if not c["passed"])
    assert made.draws.shape == (4, 40, 6)
    assert made.kinds.tolist() == ["test"] * 3 + ["probe"] * 2 + ["test"]

    # Quantities are the function in original units: w x + b, and the site sigma.
    with computing_in("float64"):
        job = reference_sampling.job_of(problem("line"))
        of = reference_sampling.Quantities(problem("line"), job)
        theta = np.asarray(jax.vmap(of.target.sample_prior)(jax.random.split(jax.random.key(0), 5)))
        sites = jax.vmap(of.target.constrain)(theta)
        values = of(theta)
    x = linear_regression(n=100, center=0.0, half_width=5.0, seed=0).test.x[[0, 50, 99], 0]
    x = np.concatenate([x, [-10.0, 10.0]])
    kernel = next(np.asarray(v)[:, 0] for name, v in sites.items() if "kernel" in name)
    bias = next(np.asarray(v) for name, v in sites.items() if "bias" in name)
    np.testing.assert_allclose(values[:, :5], kernel * x + bias, rtol=1e-6)
    np.testing.assert_allclose(values[:, 5], sites["sigma"], rtol=1e-12)

    # Kept parts are not sampled again, and give the same artefact.
    monkeypatch.setattr(reference_sampling.Sampler, "__call__", None)
    first = (folder / "line" / "draws.npz").read_bytes()
    assert main(["make", "line", "--work", str(tmp_path / "work")]) == 1
    with np.load(folder / "line" / "draws.npz") as again:
        np.testing.assert_array_equal(again["draws"], made.draws)

    # Draws of any library are scored; the reference's own are worth as many as there are.
    np.savez(tmp_path / "mine.npz", draws=made.draws)
    capsys.readouterr()
    assert main(["score", "line", str(tmp_path / "mine.npz"), "--num-grads", "1000"]) == 0
    said = capsys.readouterr().out
    assert "not certified" in said and "worth" in said and "gradients per exact draw" in said
    np.savez(tmp_path / "wrong.npz", draws=made.draws[..., :2])
    assert main(["score", "line", str(tmp_path / "wrong.npz")]) == 2

    # A changed artefact, and a problem that has changed, are said.
    (folder / "line" / "draws.npz").write_bytes(first + b"0")
    assert main(["check", "line"]) == 1
    assert "do not fit the checksum" in capsys.readouterr().out
    (folder / "line" / "draws.npz").write_bytes(first)
    certificate = folder / "line" / "certificate.json"
    certificate.write_text(json.dumps(json.loads(certificate.read_text()) | {"certified": True}))
    assert main(["check", "line"]) == 1
    assert "contradicts its own criteria" in capsys.readouterr().out
    problem.cache_clear()
    artefacts.load.cache_clear()
    shutil.rmtree(folder)
