"""What the start of chains changes: ``python -m experiments.starts.starts`` runs three problems from three starts.

It writes ``table.csv`` beside this file, from which docs/evaluation.md quotes. About five minutes on two cores.
"""

import csv
import tempfile
from pathlib import Path

from bdlbench.runs.group import run

TABLE = Path(__file__).with_name("table.csv")
PROBLEMS = {
    "eight_schools": ("data=eight_schools", "model=eight_schools"),
    "cosine_gap": ("data=cosine_gap", "network.width=10"),
    "diabetes": ("data=diabetes", "network.width=10"),
}
STARTS = ("prior", "adam", "map")
SCHEDULE = "inference.schedule={num_chains: 4, num_warmup: 300, num_samples: 300, thinning: 1}"
COLUMNS = ("problem", "init", "warmup_gradients", "rhat_max", "ess_bulk_min", "lppd", "num_diverging", "status")


def main() -> None:
    """Run NUTS from each start on each problem and write what its records say."""
    with tempfile.TemporaryDirectory() as store, TABLE.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for problem, options in PROBLEMS.items():
            for start in STARTS:
                record = run(
                    [*options, "inference=nuts", "~tuned", SCHEDULE, f"inference.init={start}", f"store.path={store}"]
                )
                found = record["metrics"]
                shown = [found.get(name) for name in ("rhat_max", "ess_bulk_min", "lppd")]
                table.writerow(
                    [
                        problem, start, round(record["num_grads"]["warmup"]),
                        *("" if value is None else f"{value:.4g}" for value in shown),
                        record.get("num_diverging", ""), record["status"],
                    ]
                )  # fmt: skip
                file.flush()


if __name__ == "__main__":
    main()
