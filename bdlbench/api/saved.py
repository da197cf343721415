"""Save a posterior as a folder of npz and JSON files, and load it. No code is run unless the caller trusts the folder."""

import dataclasses
import functools
import hashlib
import importlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import bdlbench
from bdlbench.api import problem
from bdlbench.api.inputs import Inputs, Targets
from bdlbench.api.posterior import Origin, Posterior
from bdlbench.api.problem import Parts, Rows
from bdlbench.api.serving import Server
from bdlbench.data.dataset import Scaler
from bdlbench.errors import ConfigError
from bdlbench.model import trees
from bdlbench.runs import configuration
from bdlbench.runs.trust import untrusted
from bdlbench.sampling.devices import settings
from bdlbench.sampling.position import from_arrays

FORMAT = 1
"""Version of the format of the folder; it is increased when the format changes."""


def save(posterior: Posterior, folder: Path, *, rows: bool) -> Path:
    """See :meth:`bdlbench.Posterior.save`."""
    server, parts, origin = posterior._server, posterior._parts, posterior._origin
    if rows and origin is None:
        raise ConfigError("rows=True: this posterior was loaded without its training rows, so save it without them.")
    if folder.exists() and not (
        folder.is_dir() and ((folder / "posterior.json").is_file() or not any(folder.iterdir()))
    ):
        raise ConfigError(f"folder={str(folder)!r} exists and holds no saved posterior: choose another one.")
    arrays = {"theta": server.theta, "good": server.good} | {f"stats/{n}": v for n, v in posterior._stats.items()}
    arrays |= {f"fixed/{name}": value for name, value in parts.fixed.items()}
    optional = {"anchor": server.anchor, "keep": server.inputs.keep}
    for name, scaler in (("x", server.inputs.scaler), ("y", server.targets.scaler)):
        if scaler is not None:
            optional |= {f"{name}_loc": np.asarray(scaler.loc), f"{name}_scale": np.asarray(scaler.scale)}
    arrays |= {name: value for name, value in optional.items() if value is not None}
    facts: dict[str, Any] = {}
    if rows:
        assert origin is not None
        arrays |= {"rows/x": origin.rows.x, "rows/y": origin.rows.y}
        facts = {"start": origin.start, "notes": list(origin.rows.notes)}
        if origin.position is not None:
            arrays |= {f"position/{name}": value for name, value in origin.position.arrays().items()}
    about = {
        "format": FORMAT,
        "bdlbench": bdlbench.__version__,
        "labels": parts.labels,
        "nodes": parts.nodes,
        "objects": {name: _described(thing) for name, thing in parts.objects.items() if name != "inference"},
        "own_inference": "inference" in parts.objects,
        "temperature": parts.temperature,
        "precision": parts.precision,
        "seed": server.seed,
        "feature_shape": list(server.feature_shape),
        "rows": server.rows,
        "gaussian": server.gaussian,
        "inputs": {"shape": list(server.inputs.shape), "names": list(server.inputs.names),
                   "tree": trees.to_plain(server.inputs.tree), "integer": server.inputs.integer},
        "targets": {"task": server.targets.task, "shape": list(server.targets.shape), "name": server.targets.name,
                    "classes": _classes_to_json(server.targets.classes)},
        "sites": {name: list(values.shape[2:]) for name, values in posterior._sites.items()},
        "facts": posterior._facts,
        "origin": facts,
        "report": dict(posterior._report),
    }  # fmt: skip
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise ConfigError(
            f"folder={str(folder)!r} cannot be made ({error.strerror}): choose a place that can be written to."
        ) from None
    try:
        np.savez(part / "arrays.npz", allow_pickle=False, **arrays)
        about["arrays_sha256"] = _sha256(part / "arrays.npz")
        text = json.dumps(about, indent=1)
        (part / "posterior.json").write_text(json.dumps({"sha256": _text_sha256(text)}) + "\n" + text)
        part.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(part, folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return folder


def load(
    folder: Path,
    *,
    network: Any,
    model: Any,
    prior: Any,
    likelihood: Any,
    trust: bool,
) -> Posterior:
    """See :func:`bdlbench.load`."""
    about, arrays = _read(folder)
    parts = _parts(about, folder, {"network": network, "model": model, "prior": prior, "likelihood": likelihood}, trust)
    fixed = {name.removeprefix("fixed/"): value for name, value in arrays.items() if name.startswith("fixed/")}
    parts = dataclasses.replace(parts, fixed=fixed)
    scalers = {
        name: Scaler(arrays[f"{name}_loc"], arrays[f"{name}_scale"]) if f"{name}_loc" in arrays else None
        for name in ("x", "y")
    }
    shape = about["inputs"]
    inputs = Inputs(
        tuple(shape["shape"]),
        tuple(shape["names"]),
        arrays.get("keep"),
        scalers["x"],
        trees.from_plain(shape["tree"]),
        shape.get("integer", False),
    )
    of_y = about["targets"]
    classes = _classes_from_json(of_y["classes"])
    targets = Targets(of_y["task"], classes, scalers["y"], tuple(of_y["shape"]), of_y["name"])
    nodes, numbers = configuration.split(parts.nodes)
    numbers["temperature"] = parts.temperature
    server = Server(
        program=problem.make_program(parts, nodes, numbers, inputs, targets),
        numbers=numbers,
        inputs=inputs,
        targets=targets,
        seed=about["seed"],
        feature_shape=tuple(about["feature_shape"]),
        rows=about["rows"],
        theta=arrays["theta"],
        good=arrays["good"],
        anchor=arrays.get("anchor"),
        gaussian=about["gaussian"],
    )
    with settings(server.precision):
        _check_sites(server, about["sites"], folder)
    stats = {name.removeprefix("stats/"): value for name, value in arrays.items() if name.startswith("stats/")}
    with settings(server.precision):
        origin = _origin(about, arrays, parts, inputs, targets, server.seed)
    return Posterior(server, parts, about["facts"], stats, origin=origin, report=about["report"])


def _origin(
    about: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    parts: Parts,
    inputs: Inputs,
    targets: Targets,
    seed: int,
) -> Origin | None:
    if "rows/x" not in arrays or about["own_inference"]:
        return None
    rows = Rows(arrays["rows/x"], arrays["rows/y"], inputs, targets, tuple(about["origin"]["notes"]))
    held = {n.removeprefix("position/"): v for n, v in arrays.items() if n.startswith("position/")}
    position = from_arrays(held) if held else None
    return Origin(rows, problem.make_job(parts, rows, seed), about["origin"]["start"], position)


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    file = folder / "posterior.json"
    if not file.is_file():
        raise ConfigError(
            f"'{folder}' holds no saved posterior: give a folder that Posterior.save wrote, or the id of a run with store=."
        )
    again = "save the posterior again"
    try:
        first, text = file.read_text().split("\n", 1)
        about = json.loads(text)
        sound = json.loads(first)["sha256"] == _text_sha256(text)
        version = about["format"], about["bdlbench"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"'{file}' is damaged ({type(error).__name__}): {again}, or use a copy.") from None
    if version[0] != FORMAT:
        raise ConfigError(
            f"'{folder}' was saved in format {version[0]} by bdlbench {version[1]}, but bdlbench {bdlbench.__version__} "
            f"reads format {FORMAT}: load it with bdlbench {version[1]}, or fit again."
        )
    if not sound:
        raise ConfigError(f"'{file}' is damaged (its checksum does not fit): {again}, or use a copy.")
    archive = folder / "arrays.npz"
    if not archive.is_file() or _sha256(archive) != about["arrays_sha256"]:
        raise ConfigError(f"'{archive}' is missing or damaged (its checksum does not fit): {again}, or use a copy.")
    try:
        with np.load(archive, allow_pickle=False) as found:
            return about, {name: found[name] for name in found.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise ConfigError(f"'{archive}' is damaged ({type(error).__name__}): {again}, or use a copy.") from None


def _parts(about: Mapping[str, Any], folder: Path, given: Mapping[str, Any], trust: bool) -> Parts:
    objects: dict[str, Any] = {}
    for name, described in about["objects"].items():
        if given.get(name) is not None:
            objects[name] = given[name]
        elif trust and described["import"] is not None:
            objects[name] = _imported(described, folder)
        elif described["import"] is None:
            raise ConfigError(
                f"'{folder}' was saved with a {name} that cannot be imported ('{described['name']}'): hand it in with "
                f"{name}=..."
            )
        else:
            raise ConfigError(
                f"'{folder}' was saved with the {name} '{described['import']}': hand it in with {name}=..., or let it be "
                "imported with trust=True."
            )
        if name == "network":
            objects[name] = problem._network(objects[name])
    extra = [name for name, value in given.items() if value is not None and name not in about["objects"]]
    if extra:
        raise ConfigError(
            f"{extra[0]} is handed in, but '{folder}' was saved with one of bdlbench's own: leave it out."
        )
    if not trust:
        named = next(untrusted(about["nodes"]), None)
        if named is not None:
            raise ConfigError(
                f"'{folder}' names {named}, which is not bdlbench's own: load it with trust=True if you trust who made it."
            )
    nodes = dict(about["nodes"])
    return Parts(nodes, objects, about["temperature"], about["labels"], about.get("precision", "float32"))


def _check_sites(server: Server, saved: Mapping[str, Any], folder: Path) -> None:
    """Raise ConfigError if the model that the caller gives is not the one that was fitted."""
    import jax
    import jax.numpy as jnp

    def sites(x: Any, y: Any) -> Any:
        target = server.program.make_target(server.numbers, x, y)
        return target.constrain(jnp.zeros(target.dim))

    shared = server.shared
    shapes = {name: site.shape for name, site in jax.eval_shape(sites, shared.x[0], shared.y[0]).items()}
    for name in sorted({*saved, *shapes}):
        has, wanted = shapes.get(name), None if name not in saved else tuple(saved[name])
        if has != wanted:
            here = "is missing" if has is None else f"has shape {has}"
            there = "is missing" if wanted is None else f"has shape {wanted}"
            raise ConfigError(
                f"'{folder}': the site '{name}' {there} in what was saved, but {here} in the model that was handed in: "
                "hand in the one that was fitted."
            )


# ---- what is not an array as JSON


def _described(thing: Any) -> dict[str, Any]:
    """The names to import a caller's object again: its module, its name, and the arguments of a partial."""
    options: dict[str, Any] = {}
    named = thing.module if isinstance(thing, problem._Instance) else thing
    while isinstance(named, functools.partial):
        if named.args:
            return {"import": None, "name": problem._name(named), "options": {}}
        options, named = {**named.keywords, **options}, named.func
    module, name = getattr(named, "__module__", None), getattr(named, "__qualname__", None)
    found = None
    if module not in (None, "__main__") and name and "<" not in name:
        try:
            options = problem.plain("options", options)
            if functools.reduce(getattr, name.split("."), importlib.import_module(module)) is named:
                found = f"{module}:{name}"
        except (ConfigError, ImportError, AttributeError):
            found = None
    return {"import": found, "name": problem._name(named), "options": options if found else {}}


def _imported(described: Mapping[str, Any], folder: Path) -> Callable[..., Any]:
    module, name = described["import"].split(":")
    try:
        found: Any = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"'{folder}' needs '{described['import']}', which cannot be imported here: {error}."
        ) from None
    return functools.partial(found, **described["options"]) if described["options"] else found


def _classes_to_json(classes: np.ndarray | None) -> Any:
    if classes is None:
        return None
    kind = "object" if classes.dtype.kind == "O" else classes.dtype.str
    return {"dtype": kind, "values": problem.plain("classes", classes.tolist())}


def _classes_from_json(saved: Any) -> np.ndarray | None:
    return None if saved is None else np.array(saved["values"], dtype=np.dtype(saved["dtype"]))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _text_sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
