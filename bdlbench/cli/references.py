"""``bdlbench-references``: make, list and check reference posteriors, and compare them with draws of any library."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bdlbench.errors import ConfigError
from bdlbench.references import artefacts
from bdlbench.references.problems import names, problem
from bdlbench.store import StoreError

DEFAULT_WORK = "results/references"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0; 2 for wrong input; 1 for a reference that fails.

    For 1 and 2, one sentence is written to stderr.
    """
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.command(arguments) or 0)
    except (ConfigError, StoreError) as error:
        print(f"bdlbench-references: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        print("bdlbench-references: stopped; the same command goes on from the parts that are kept.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bdlbench-references", description="Reference posteriors: sampled to high accuracy, checked and certified."
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    make = commands.add_parser("make", help="sample a problem by its plans and write its artefact; parts are kept")
    make.add_argument("names", nargs="+", metavar="NAME", help="names of problems, or 'all'")
    make.add_argument(
        "--work", type=Path, default=Path(DEFAULT_WORK), help="folder of the parts (default: %(default)s)"
    )
    make.add_argument("--output", type=Path, help="folder of the artefacts (default: that of the package)")
    make.set_defaults(command=_make)
    commands.add_parser("list", help="list the problems and their certificates").set_defaults(command=_list)
    show = commands.add_parser(
        "show", help="print a problem, its options of the command line, and its certificate as JSON"
    )
    show.add_argument("name")
    show.set_defaults(command=_show)
    check = commands.add_parser("check", help="check checksums and certificates, without sampling")
    check.add_argument("names", nargs="*", metavar="NAME", help="(default: all)")
    check.set_defaults(command=_check)
    export = commands.add_parser("export", help="write draws and info in the layout of posteriordb")
    export.add_argument("name")
    export.add_argument(
        "--output", type=Path, default=Path(), help="the folder above reference_posteriors (default: here)"
    )
    export.set_defaults(command=_export)
    parts = commands.add_parser(
        "ledger", help="repeat a stored run with interventions, to see what its bias is made of"
    )
    parts.add_argument("run", help="its id or a unique beginning")
    parts.add_argument("--store", default="results/store", metavar="PATH", help="the store (default: %(default)s)")
    parts.add_argument("--trust", action="store_true", help="call factories that bdlbench does not ship")
    parts.add_argument("--figure", metavar="FILE", help="draw it as PNG")
    parts.set_defaults(command=_ledger)
    score = commands.add_parser("score", help="compare function draws of any library with a reference")
    score.add_argument("name")
    score.add_argument(
        "draws", type=Path, help="npz file with an array 'draws' (chains, draws, quantities) or (draws, quantities)"
    )
    score.add_argument("--num-grads", type=float, help="gradient evaluations that the draws cost, in full-data units")
    score.set_defaults(command=_score)
    return parser


def _make(arguments: argparse.Namespace) -> int:
    from bdlbench.evaluation import references

    chosen = names() if arguments.names == ["all"] else arguments.names
    for name in chosen:
        problem(name)  # all names are checked before the first is sampled
    certified = [references.make(name, arguments.work, arguments.output)["certified"] for name in chosen]
    return 0 if all(certified) else 1


def _list(arguments: argparse.Namespace) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("name", "weights", "draws", "resolution", "certificate", "about"):
        table.add_column(column, overflow="fold")
    for name in names():
        about = problem(name).about
        if name not in artefacts.available():
            table.add_row(name, "", "", "", "not sampled yet", about)
            continue
        reference = artefacts.load(name)
        last = reference.certificate["attempts"][-1]["criteria"]
        failed = ", ".join(f"{c['name']} {c['figure']:.3g}" for c in last if not c["passed"])
        table.add_row(
            name,
            str(reference.certificate["num_weights"]),
            f"{reference.draws.shape[0] * reference.draws.shape[1]:,}",
            f"{reference.problem.tau:g} sd",
            "certified" if reference.certified else f"not certified: {failed}",
            about,
        )
    (Console() if sys.stdout.isatty() else Console(width=200)).print(table)


def _show(arguments: argparse.Namespace) -> None:
    found = problem(arguments.name)
    content: dict[str, Any] = {"about": found.about, "command": f"bdlbench reference={found.name} inference=<method>"}
    content["options"] = list(found.options)
    if found.name in artefacts.available():
        content |= artefacts.load(found.name).certificate
    else:
        content["certified"] = "not sampled yet"
    print(json.dumps(content, indent=1))


def _export(arguments: argparse.Namespace) -> None:
    from bdlbench.references.exporting import export

    for path in export(artefacts.load(arguments.name), arguments.output):
        print(path)


def _ledger(arguments: argparse.Namespace) -> None:
    from bdlbench.evaluation.ledger import ledger
    from bdlbench.store import Store

    store = Store(arguments.store)
    run = store.find(arguments.run)
    found = ledger(store, run, trust=arguments.trust, say=lambda text: print(text, file=sys.stderr))
    print(
        f"{run} against {found.reference}: squared bias at test points in sd², with its 95 % interval, and what changes it"
    )
    if not found.certified:
        print("The reference is not certified, so the numbers are against its draws and no more.")
    for name, bias, change, note in found.entries:
        value = "" if bias is None else f"{bias.squared:.4f} ({bias.squared_low:.4f} to {bias.squared_high:.4f})"
        print(f"  {name:<24}{value:<30}{'' if change is None else f'{-change:+.4f}'}  {note}".rstrip())
    print(f"  {'the rest':<24}{found.rest:.4f}")
    print(f"The repetitions took {found.num_grads:,.0f} gradients.")
    if arguments.figure:
        from bdlbench.report import fidelity_figures, figures

        print(figures.save(fidelity_figures.ledger(found, title=run), arguments.figure))


def _check(arguments: argparse.Namespace) -> int:
    chosen = arguments.names or artefacts.available()
    bad = 0
    for name in chosen:
        if name not in artefacts.available():
            artefacts.load(name)  # says what is wrong with the name
        for fault in artefacts.faults(name):
            bad += 1
            print(f"{name}: {fault}")
    print(f"{len(chosen)} references checked, {bad} faults.")
    return 1 if bad else 0


def _score(arguments: argparse.Namespace) -> None:
    from bdlbench.metrics import fidelity

    reference = artefacts.load(arguments.name)
    if not arguments.draws.is_file():
        raise ConfigError(f"draws='{arguments.draws}' is no file: give an npz file with an array 'draws'.")
    try:
        with np.load(arguments.draws, allow_pickle=False) as arrays:
            draws = np.asarray(arrays["draws"], np.float64)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"draws='{arguments.draws}' has no array 'draws' ({error}): save one with numpy.savez."
        ) from None
    wanted = reference.draws.shape[-1]
    if draws.ndim not in (2, 3) or draws.shape[-1] != wanted or not np.isfinite(draws).all():
        raise ConfigError(
            f"draws has the shape {draws.shape}: give finite numbers (chains, draws, {wanted}) or (draws, {wanted}), in "
            f"the order of `quantities` in `bdlbench-references show {arguments.name}`."
        )
    chains = draws if draws.ndim == 3 else draws[None]
    kinds = reference.kinds
    print(
        f"{arguments.name}: {chains.shape[0]} chains of {chains.shape[1]} draws against {reference.draws[..., 0].size}."
    )
    if not reference.certified:
        print("The reference is not certified, so the numbers are against its draws and no more.")
    for kind in dict.fromkeys(kinds.tolist()):
        found = fidelity.fidelity(
            chains[..., kinds == kind], reference.draws[..., kinds == kind], independent=draws.ndim == 2
        )
        print(f"{kind} points ({(kinds == kind).sum()} numbers a draw)")
        for name, value in found.scalars().items():
            print(f"  {name:<22}{value:.4g}" if isinstance(value, float) else f"  {name:<22}{value}")
        if arguments.num_grads is not None:
            print(f"  {'gradients per exact draw':<22} {found.gradients_per_exact_draw(arguments.num_grads):.4g}")


if __name__ == "__main__":
    sys.exit(main())
