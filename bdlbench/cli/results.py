"""The command ``bdlbench-results``, which lists, compares and checks stored runs.

Most of its subcommands read only records, so that they do not import JAX.
"""

import argparse
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bdlbench import __version__
from bdlbench.cli.predict import predict
from bdlbench.cli.streams import make_lenient
from bdlbench.cli.tail import in_text, last_look, tail
from bdlbench.errors import ConfigError
from bdlbench.report.escaping import printable
from bdlbench.store import RunBusy, Store, StoreError
from bdlbench.store.records import LABELS, STATUSES, encode, flatten

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console, RenderableType

DEFAULT_STORE = "results/store"
_LISTED = ("id", "status", "data", "inference", "network", "seed", "split", "lppd", "warnings", "created")
_HEADLINE = "such as lppd or rmse (default: the headline metric of the data sets, lppd for most)"
_PLOTS = ("worth", "beside", "trace", "rank", "pit", "coverage", "reliability")
_WIDE = 400  # columns of the output to a file or a pipe


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments after the program's name; None means those of the process.

    Returns
    -------
    int
        0 for success; 2 for wrong arguments and 1 for a fault in the store, each with one sentence on stderr. Some
        subcommands return 1 if they found something wrong, such as ``verify`` for a damaged run.
    """
    if argv is None:
        make_lenient()
    try:
        arguments = _parser().parse_args(argv)
        with warnings.catch_warnings():
            warnings.simplefilter("default", UserWarning)
            warnings.showwarning = _show_warning
            return arguments.command(arguments) or 0
    except KeyboardInterrupt:  # how one leaves `tail --follow`
        return 130
    except (StoreError, RunBusy, ConfigError) as error:
        print(f"bdlbench-results: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    finally:
        if argv is None:  # while the interpreter ends nobody can catch what Python's own handler raises
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bdlbench-results", description="List, compare and check stored runs.")
    parser.add_argument("--version", action="version", version=f"bdlbench {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    store = argparse.ArgumentParser(add_help=False)
    store.add_argument("--store", default=DEFAULT_STORE, metavar="PATH", help="the store (default: %(default)s)")
    filters = argparse.ArgumentParser(add_help=False)
    filters.add_argument(
        "--filter",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="only runs with this label or setting, as in data=diabetes inference.step_size=1e-5",
    )
    filters.add_argument("--status", nargs="+", choices=STATUSES, help="only runs with this status")

    def add(name: str, command: Callable[[Any], int | None], help: str, *parents: Any) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".", parents=parents)
        added.set_defaults(command=command)
        return added

    listed = add("list", _list, "list the finished runs, or the unfinished ones", store, filters)
    which = listed.add_mutually_exclusive_group()
    which.add_argument(
        "--unfinished", action="store_true", help="runs in progress or interrupted, and how far they are"
    )
    which.add_argument("--running", action="store_true", help="runs that a process is writing now")
    tailed = add("tail", tail, "show how far a run is: the end of its curve, and whether its process is alive", store)
    tailed.add_argument("id", help="its id or a unique beginning")
    tailed.add_argument(
        "--lines", type=int, default=10, metavar="N", help="how many looks to print (default: %(default)s)"
    )
    tailed.add_argument("--follow", action="store_true", help="go on until the run ends")
    tailed.add_argument("--every", type=float, default=2.0, metavar="SECONDS", help=argparse.SUPPRESS)
    add("show", _show, "print the record of a run as JSON", store).add_argument(
        "id", help="its id or a unique beginning"
    )
    table = add("table", _table, "compare runs in a table", store, filters)
    table.add_argument(
        "ids", nargs="*", metavar="ID", help="ids or unique beginnings (default: all that fit the filter)"
    )
    table.add_argument("--markdown", action="store_true", help="print Markdown")
    table.add_argument("--aggregate", action="store_true", help="means over splits and seeds, with standard errors")
    compared = add("compare", _compare, "say which methods are better, over splits and data sets", store, filters)
    compared.add_argument("--metric", metavar="NAME", help=_HEADLINE)
    compared.add_argument(
        "--delta", required=True, type=float, help="the difference that matters, in the metric's unit"
    )
    compared.add_argument("--by", choices=["data"], help="a row for each data set too")
    compared.add_argument("--baseline", metavar="NAME", help="compare each method with this one (default: all pairs)")
    compared.add_argument("--rho", type=float, help="correlation of two splits (default: the share of test rows)")
    compared.add_argument("--problems", choices=["tuning", "judging"], help="only data sets of this list")
    compared.add_argument("--plan", action="store_true", help="say what would decide what is undecided")
    compared.add_argument(
        "--format", choices=["markdown", "latex", "csv"], default="markdown", help="(default: %(default)s)"
    )
    printed = add(
        "paper", _paper, "print tables for a paper: means and errors over splits, the best marked", store, filters
    )
    printed.add_argument("--metric", nargs="+", action="extend", metavar="NAME", help=_HEADLINE)
    printed.add_argument(
        "--columns", choices=["data", "metric"], default="data", help="what the columns are (default: %(default)s)"
    )
    printed.add_argument("--problems", choices=["tuning", "judging"], help="only data sets of this list")
    printed.add_argument("--rho", type=float, help="correlation of two splits (default: the share of test rows)")
    printed.add_argument(
        "--format", choices=["markdown", "latex", "csv"], default="markdown", help="(default: %(default)s)"
    )
    ranked = add("ranks", _ranks, "rank methods over data sets, with the posterior of ranks", store, filters)
    ranked.add_argument("--metric", metavar="NAME", help=_HEADLINE)
    ranked.add_argument("--by", metavar="SETTING", help="ranks for each value of it, as in --by prior.weight_scale")
    ranked.add_argument("--problems", choices=["tuning", "judging"], help="only data sets of this list")
    ranked.add_argument("--rho", type=float, help="correlation of two splits (default: the share of test rows)")
    ranked.add_argument("--figure", metavar="FILE", help="draw it as PNG; of several with -2, -3, ... in the name")
    edge = add(
        "frontier", _frontier, "say which method is nearer at which price, from the curves of runs", store, filters
    )
    edge.add_argument(
        "ids", nargs="*", metavar="ID", help="ids or unique beginnings (default: all that fit the filter)"
    )
    edge.add_argument("--price", choices=["num_grads", "seconds"], default="num_grads", help="(default: %(default)s)")
    edge.add_argument("--tuning", action="store_true", help="add the gradients of the search for tuned settings")
    edge.add_argument(
        "--figure", metavar="FILE", help="draw it as PNG; of several posteriors with -2, -3, ... in the name"
    )
    drawn = add("plot", _plot, "draw a figure of stored runs", store, filters)
    drawn.add_argument("kind", choices=_PLOTS, help="what is drawn")
    drawn.add_argument(
        "ids", nargs="*", metavar="ID", help="ids or unique beginnings (default: all that fit the filter)"
    )
    drawn.add_argument(
        "--figure", required=True, metavar="FILE", help="a PNG file; further figures have -2, -3, ... in the name"
    )
    drawn.add_argument("--trust", action="store_true", help="call factories that bdlbench does not ship")
    near = add("fidelity", _fidelity, "say how many draws of another run the draws of a run are worth", store)
    near.add_argument("id", help="its id or a unique beginning")
    near.add_argument("--against", required=True, metavar="ID", help="the run that stands for the truth")
    diff = add("diff", _diff, "show where the configurations of two runs differ", store)
    diff.add_argument("ids", nargs=2, metavar="ID")
    delete = add("delete", _delete, "delete failed and diverged runs, after a confirmation", store)
    delete.add_argument("--failed", action="store_true", required=True, help="all runs that are not complete")
    delete.add_argument("--yes", action="store_true", help="do not ask")
    sql = add("sql", _sql, "answer a DuckDB query over the table 'runs'", store)
    sql.add_argument("query", help='such as "select inference, avg(lppd) from runs group by 1"')
    scored = add("rescore", _rescore, "compute metrics of stored runs from their draws, and add them", store, filters)
    scored.add_argument(
        "ids", nargs="*", metavar="ID", help="ids or unique beginnings (default: all that fit the filter)"
    )
    scored.add_argument("--metric", nargs="+", action="extend", metavar="NAME", help="(default: those of every run)")
    scored.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="such as metrics.ece.num_bins=10"
    )
    scored.add_argument("--trust", action="store_true", help="call factories that bdlbench does not ship")
    verify = add("verify", _verify, "check stored files against their checksums", store)
    verify.add_argument("id", nargs="?", help="its id or a unique beginning (default: all runs)")
    predicted = add("predict", predict, "predict new rows of a CSV file with a stored run, in original units", store)
    predicted.add_argument("id", help="its id or a unique beginning")
    predicted.add_argument("rows", help="a CSV file with a header line, whose columns are found by name")
    predicted.add_argument("--trust", action="store_true", help="call factories that bdlbench does not ship")
    predicted.add_argument("-o", "--output", metavar="FILE", help="a CSV file (default: standard output)")
    add("data", _data, "list the data sets")
    return parser


def _list(arguments: argparse.Namespace) -> None:
    store = Store(arguments.store)
    if arguments.unfinished or arguments.running:
        if arguments.filter or arguments.status:
            raise ConfigError("--filter and --status are about finished runs; leave them out or --unfinished.")
        held = [(id, store.holder(id)) for id in store.unfinished()]
        held = [(id, by) for id, by in held if by or arguments.unfinished]
        if held:
            cells = [[id, f"running ({by})" if by else "interrupted", _last_look(store, id)] for id, by in held]
            _print(_grid(["id", "state", "last look"], cells))
        else:
            print(f"No {'running' if arguments.running else 'unfinished'} runs in {arguments.store}.")
        return
    rows = _selected(store, arguments)
    if rows:
        shown = [name for name in _LISTED if any(row.get(name) is not None for row in rows)]
        _print(_grid(shown, [[in_text(row.get(name)) for name in shown] for row in rows]))
    else:
        _say_empty(arguments)
    unfinished = store.unfinished()
    if unfinished:
        print(f"{len(unfinished)} unfinished (in progress or interrupted): {', '.join(unfinished[:5])}", end="")
        print(", ..." if len(unfinished) > 5 else "")


def _last_look(store: Store, id: str) -> str:
    try:
        return last_look(store, id)
    except StoreError as error:  # one damaged run must not hide the others
        return printable(str(error))


def _show(arguments: argparse.Namespace) -> None:
    store = Store(arguments.store)
    record = store.record(store.find(arguments.id))
    text = encode({key: value for key, value in record.items() if key not in ("nonfinite", "record_sha256")}).decode()
    if not sys.stdout.isatty():
        print(text, end="")
        return
    console = _console()
    console.print_json(text)
    if record.get("traceback"):
        for line in str(record["traceback"]).splitlines():
            console.print(printable(line), markup=False, highlight=False)


def _table(arguments: argparse.Namespace) -> None:
    from bdlbench.report.tables import comparison, comparison_markdown

    records = _records(Store(arguments.store), arguments)
    if not records:
        return
    if arguments.markdown:
        print(comparison_markdown(records, aggregate=arguments.aggregate), end="")
    else:
        _print(comparison(records, aggregate=arguments.aggregate))


def _compare(arguments: argparse.Namespace) -> None:
    from bdlbench.report import verdicts
    from bdlbench.report.headline import headline

    records = _records(Store(arguments.store), arguments)
    if not records:
        return
    leagues = verdicts.compare(
        records,
        metric=arguments.metric or headline(records),
        delta=arguments.delta,
        by_data=arguments.by == "data",
        baseline=arguments.baseline,
        rho=arguments.rho,
        with_plan=arguments.plan,
    )
    show = {"markdown": verdicts.as_markdown, "latex": verdicts.as_latex, "csv": verdicts.as_csv}
    print(show[arguments.format](leagues), end="")


def _paper(arguments: argparse.Namespace) -> None:
    from bdlbench.report import paper
    from bdlbench.report.headline import headline

    records = _records(Store(arguments.store), arguments)
    if not records:
        return
    found = paper.paper(
        records, metrics=arguments.metric or [headline(records)], columns=arguments.columns, rho=arguments.rho
    )
    show = {"markdown": paper.as_markdown, "latex": paper.as_latex, "csv": paper.as_csv}
    print(show[arguments.format](found), end="")


def _ranks(arguments: argparse.Namespace) -> None:
    from bdlbench.report import ranks
    from bdlbench.report.headline import headline

    records = _records(Store(arguments.store), arguments)
    if not records:
        return
    found = ranks.ranking(records, metric=arguments.metric or headline(records), rho=arguments.rho, by=arguments.by)
    print(ranks.as_markdown(found), end="")
    if arguments.figure:
        _save([ranks.figure(one) for one in found], arguments.figure)


def _frontier(arguments: argparse.Namespace) -> None:
    from bdlbench.report import frontier

    store = Store(arguments.store)
    records = _records(store, arguments)
    if not records:
        return
    found = frontier.gather(store, records, tuning=arguments.tuning)
    print(frontier.in_words(found, arguments.price), end="")
    if arguments.figure:
        _save([frontier.figure(one) for one in found if one.curves], arguments.figure)


def _plot(arguments: argparse.Namespace) -> None:
    from bdlbench.report.pictures import KINDS

    store = Store(arguments.store)
    records = [record for record in _records(store, arguments) if record["status"] != "failed"]
    if records:
        _save(KINDS[arguments.kind](store, records, trust=arguments.trust), arguments.figure)


def _fidelity(arguments: argparse.Namespace) -> None:
    from bdlbench.evaluation.between_runs import between

    store = Store(arguments.store)
    run, other = store.find(arguments.id), store.find(arguments.against)
    found = between(store, run, other)
    print(printable(f"{run} against {other} at {found.num_points} test rows"))
    print("Uncertified: nobody has checked the run that it is compared with, whose own errors count as differences.")
    if found.same_posterior is False:
        print("The two runs sample different posteriors, so a bias need not be an error.")
    one = found.fidelity
    print(f"  worth                     {one.worth} exact draws; jointly {one.worth_joint}")
    print(f"  bias in sd                {_bias(one.bias)}; jointly {_bias(one.bias_joint)}")
    print(f"  gradients per exact draw  {found.gradients_per_exact_draw:.4g}")
    print(f"  W1 in sd                  {one.w1:.3f}, and {one.w1_floor:.3f} for exact draws")
    print(f"  shift of mean, log sd     {one.shift:.3f}, {one.log_sd:.3f}")
    if one.weak:
        print("Weak: one or two chains, which may all miss a mode.")


def _bias(found: Any) -> str:
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


def _diff(arguments: argparse.Namespace) -> None:
    store = Store(arguments.store)
    ids = [store.find(prefix) for prefix in arguments.ids]
    first, second = (dict(flatten(store.record(id)["config"])) for id in ids)
    absent = object()
    keys = [key for key in dict.fromkeys([*first, *second]) if first.get(key, absent) != second.get(key, absent)]
    if not keys:
        print("The configurations are equal.")
        return
    cells = [[key, *(in_text(one[key]) if key in one else "–" for one in (first, second))] for key in keys]
    _print(_grid(["setting", *ids], cells))


def _delete(arguments: argparse.Namespace) -> int:
    store = Store(arguments.store)
    rows = [row for row in store.rows(config=True) if row["status"] != "complete"]
    if not rows:
        print(f"No failed runs in {arguments.store}.")
        return 0
    for row in rows:
        print(printable(f"{row['id']}  {row['status']}: {row['reason']}"))
    if not arguments.yes:
        try:
            answer = input(f"Delete {_runs(len(rows))} and all their files? [y/N] ")
        except EOFError:
            answer = ""
        if answer.strip().lower() not in ("y", "yes"):
            print("Nothing deleted.")
            return 1
    kept = 0
    for row in rows:  # another process may have repeated a run while the user was asked
        try:
            store.delete(row["id"], unless_complete=True)
        except (RunBusy, ConfigError) as error:
            print(error)
        kept += (store.path / row["id"]).exists()
    print(
        f"Deleted {_runs(len(rows) - kept)}." + (f" {_runs(kept)} kept, being written or complete by now." * bool(kept))
    )
    return 0


def _sql(arguments: argparse.Namespace) -> None:
    frame = Store(arguments.store).sql(arguments.query)
    _print(
        _grid(
            [str(name) for name in frame.columns], [[in_text(value) for value in row] for row in frame.to_numpy(object)]
        )
    )


def _rescore(arguments: argparse.Namespace) -> int:
    from bdlbench.runs import rescore

    store = Store(arguments.store)
    try:
        wanted = rescore.metric_options(arguments.metric, arguments.set)
    except Exception as error:  # the errors of Hydra have no common base class
        from bdlbench.runs.outcome import sentence

        raise ConfigError(f"--metric: {sentence(error)}") from error
    rows = _selected(store, arguments)
    if not rows:
        _say_empty(arguments)
        return 0
    refused = 0
    for row in rows:
        record = store.record(row["id"])
        lacks = wanted if arguments.metric else rescore.lacking(record, wanted)
        reference = None if arguments.metric else rescore.lacks_fidelity(record)
        if not lacks and reference is None:
            print(f"{row['id']}: has all these metrics already")
            continue
        try:
            if lacks:
                rescore.rescore(store, row["id"], lacks, trust=arguments.trust)
            if reference is not None:
                rescore.compare(store, row["id"], reference, trust=arguments.trust)
            print(f"{row['id']}: {', '.join([*lacks, *([] if reference is None else ['fidelity'])])}")
        except (ConfigError, RunBusy, StoreError) as error:
            refused += 1
            print(printable(f"{row['id']}: not rescored: {error}"))
    print(f"{_runs(len(rows) - refused)} rescored or complete, {refused} refused.")
    return 1 if refused else 0


def _verify(arguments: argparse.Namespace) -> int:
    store = Store(arguments.store)
    ids = [store.find(arguments.id)] if arguments.id else store.finished()
    faults = {id: found for id in ids if (found := store.verify(id))}
    for id, found in faults.items():
        for fault in found:
            print(printable(f"{id}: {fault}"))
    print(f"{_runs(len(ids))} checked, {len(faults)} damaged.")
    return 1 if faults else 0


def _data(arguments: argparse.Namespace) -> None:
    from bdlbench.data import catalogue

    columns = ("name", "n", "d", "task", "licence", "source", "note")
    _print(_grid(columns, [[in_text(getattr(entry, name)) for name in columns] for entry in catalogue()]))


def _records(store: Store, arguments: argparse.Namespace) -> list[Mapping[str, Any]]:
    """The records of the runs that the arguments choose. Where there are none, it says so."""
    rows = _selected(store, arguments)
    if not rows:
        _say_empty(arguments)
    return [store.record(row["id"]) for row in rows]


def _selected(store: Store, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the runs that the ids, the status, the filter and the list of problems choose, as far as a command has them."""
    chosen = {store.find(prefix) for prefix in getattr(arguments, "ids", ())}
    rows = [row for row in store.rows(config=True) if not arguments.status or row["status"] in arguments.status]
    known = dict.fromkeys(name for row in rows for name in row)
    for text in arguments.filter:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--filter: '{text}' is not KEY=VALUE; write it as in data=diabetes.")
        column = key if key in known else f"config.{key}"
        if rows and column not in known:
            raise ConfigError(
                f"--filter: no run has '{key}'; use a label ({', '.join(LABELS)}), seed, split or a setting."
            )
        rows = [row for row in rows if _fits(row.get(column), value)]
    rows = [row for row in rows if not chosen or row["id"] in chosen]
    return _of_problems(rows, getattr(arguments, "problems", None))


def _save(figures: Sequence["Figure"], first: str) -> None:
    """Write figures to ``first``, and from the second on with -2, -3, ... in the name; print the paths."""
    from bdlbench.report.figures import save

    path = Path(first)
    for place, figure in enumerate(figures, start=1):
        print(save(figure, path if place == 1 else path.with_stem(f"{path.stem}-{place}")))


def _of_problems(rows: list[dict[str, Any]], chosen: str | None) -> list[dict[str, Any]]:
    """The rows of runs on a data set of the list for tuning or for judging; all rows if none is chosen."""
    if chosen is None:
        return rows
    from bdlbench.data.problems import problems

    return [row for row in rows if row.get("data") in getattr(problems(), chosen)]


def _fits(stored: Any, wanted: str) -> bool:
    if isinstance(stored, int | float) and not isinstance(stored, bool):
        try:
            return float(wanted) == stored  # 1e-5 and 0.00001 are the same number
        except ValueError:
            return False
    return in_text(stored).lower() == wanted.lower() if not isinstance(stored, str) else stored == wanted


def _runs(number: int) -> str:
    return f"{number} run" if number == 1 else f"{number} runs"


def _say_empty(arguments: argparse.Namespace) -> None:
    if arguments.filter or arguments.status or getattr(arguments, "problems", None):
        print(f"No runs in {arguments.store} fit the filter.")
    else:
        print(f"No finished runs in {arguments.store} yet; make one with: bdlbench inference=svi data=diabetes")


def _grid(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> "RenderableType":
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(escape(column), overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _console() -> "Console":
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=_WIDE)


def _print(what: "RenderableType") -> None:
    _console().print(what)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"bdlbench-results: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
