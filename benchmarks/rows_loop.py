"""Rows about the loop: what a leapfrog step, an SGLD step and an SVI step cost in bare gradients."""

import contextlib
import statistics
from typing import Any

import jax

from benchmarks import peers, problems
from benchmarks.timing import Options, Row, Skipped, in_blocks, in_turns, num_grads, ratio_row, seconds, steady

ENDLESS = 20_000
"""Transitions asked of a run of which a few seconds are watched."""


def nuts_one_chain(options: Options) -> list[Row]:
    """One chain of NUTS: seconds a leapfrog step over seconds a bare gradient."""
    problem, least = _diabetes(options), options.least
    warmup = 30 if options.quick else 500
    run = problems.blocks(problem, problems.nuts(warmup, ENDLESS))
    measures = {
        "bare": steady(problems.bare_gradient(problem), least),
        "ours": in_blocks(run, 1, "sample", num_grads, least),
        "numpyro": peers.numpyro_mcmc(problem, 1, warmup, 2 if options.quick else 60, 8),
    }
    with contextlib.suppress(Skipped):  # the row is then not there
        measures["blackjax"] = peers.blackjax_nuts(problem, 0.005, least)
    found = in_turns(measures, options.repeat)
    rows = [
        ratio_row(f"NUTS, one chain, a leapfrog / bare gradient ({problem.name})", found, "ours", "bare", 1.25,
                  "NumPyro's MCMC 1.8-2.3, BlackJAX 1.1"),
        ratio_row("  the same by NumPyro's MCMC, second run", found, "numpyro", "bare"),
    ]  # fmt: skip
    if "blackjax" in found:
        rows.append(ratio_row("  the same by BlackJAX in a scan, fixed step size", found, "blackjax", "bare"))
    return rows


def nuts_four_chains(options: Options) -> list[Row]:
    """Four chains of NUTS at once: wall seconds a leapfrog step of a chain over seconds a bare gradient."""
    problem, least = _diabetes(options), max(options.least, 0.01 if options.quick else 0.5)
    warmup = 30 if options.quick else 500
    run = problems.blocks(problem, problems.nuts(warmup, ENDLESS, 4), 4, block_seconds=least)
    found = in_turns(
        {
            "bare": steady(problems.bare_gradient(problem), options.least),
            "ours": in_blocks(run, 1, "sample", num_grads, least),
            "numpyro": peers.numpyro_mcmc(problem, 4, 10 if options.quick else 60, 2 if options.quick else 10, 5),
        },
        options.repeat,
    )
    where = f"{jax.device_count()} {jax.devices()[0].device_kind} device(s)"
    return [
        ratio_row(f"NUTS, 4 chains on {where}, a chain's leapfrog / bare gradient", found, "ours", "bare", 0.70,
                  "NumPyro vectorized 8"),
        ratio_row("  the same by NumPyro's MCMC, vectorized (tree depth 5)", found, "numpyro", "bare"),
    ]  # fmt: skip


def sgld_step(options: Options) -> list[Row]:
    """An SGLD step with its batching and noise over the gradient of one fixed batch."""
    problem = problems.many_rows(1000, 9, 10) if options.quick else problems.many_rows()
    batch, least = 100, options.least
    run = problems.blocks(problem, problems.langevin(ENDLESS, 10, batch, 1e-3 / len(problem.y)))
    steps = len(problem.y) / batch
    found = in_turns(
        {
            "bare": steady(problems.bare_gradient(problem, batch), least),
            "gathered": steady(problems.gathered_gradient(problem, batch), least),
            "ours": in_blocks(run, 0, "sample", lambda b: num_grads(b) * steps, least),
        },
        options.repeat,
    )
    return [
        ratio_row(f"SGLD step, batching and noise included / bare gradient of a fixed batch ({problem.name})", found,
                  "ours", "bare", 2.5, "3.8 in a scan that gathers rows, 20 in a Python loop"),
        ratio_row("  the same step / gradient with its gather", found, "ours", "gathered"),
        ratio_row("  gradient with its gather / bare gradient of a fixed batch", found, "gathered", "bare"),
    ]  # fmt: skip


def svi_step(options: Options) -> list[Row]:
    """A step of mean-field SVI over a bare gradient."""
    problem, least = _diabetes(options), options.least
    run = problems.blocks(problem, problems.mean_field(100 * ENDLESS))
    found = in_turns(
        {
            "bare": steady(problems.bare_gradient(problem), least),
            "ours": in_blocks(run, 0, "warmup", num_grads, least),
            "numpyro": peers.numpyro_svi(problem, least),
        },
        options.repeat,
    )
    return [
        ratio_row(f"SVI step / bare gradient, full batch ({problem.name})", found, "ours", "bare", 1.6,
                  "NumPyro on named sites 3.4-4.3"),
        ratio_row("  the same by NumPyro's SVI on named sites", found, "numpyro", "bare"),
    ]  # fmt: skip


def linear_regression(options: Options) -> list[Row]:
    """The field's oldest example: 1,000 steps of SVI, start to end, compilation apart."""
    problem = problems.line()

    def run(seed: int) -> float:
        blocks = problems.blocks(problem, problems.mean_field(1000), seed=seed, block_seconds=1.0)
        return seconds(lambda: _until(blocks, 1000))

    compiling = run(0)
    values = [1e3 * run(1 + i) for i in range(options.repeat)]
    detail = {"first_run_ms": 1e3 * compiling}
    return [Row("1,000 SVI steps of the linear regression, compile apart", "ms", values, 50.0, "Pyro 3.2 s", detail)]


def many_lanes(options: Options) -> list[Row]:
    """What a step of one lane costs when many run side by side."""
    if jax.default_backend() == "cpu" and not options.lanes:
        raise Skipped("many lanes are for accelerators; --lanes measures them here")
    problem, least = _diabetes(options), max(options.least, 0.01 if options.quick else 0.5)
    bare = steady(problems.bare_gradient(problem), options.least)
    rows = []
    for num_lanes in (1, 4) if options.quick else (1, 16, 256, 4096):
        for name, stages, stage, phase in (
            ("SGLD", problems.langevin(ENDLESS, 10, 32, 1e-5), 0, "sample"),
            ("NUTS", problems.nuts(20, ENDLESS), 1, "sample"),
        ):
            share = 32 / len(problem.y) if name == "SGLD" else 1.0
            run = problems.blocks(problem, stages, num_lanes)
            ours = in_blocks(run, stage, phase, lambda b, s=share: num_grads(b) / s, least)
            found = in_turns({"bare": bare, "ours": ours}, max(1, options.repeat // 3))
            unit = "step" if name == "SGLD" else "leapfrog"
            row = ratio_row(f"{name}, {num_lanes:,} lanes, a lane's {unit} / bare gradient", found, "ours", "bare")
            rows.append(row._replace(detail={**row.detail, "lane_step_us": 1e6 * statistics.median(found["ours"])}))
    return rows


def _diabetes(options: Options) -> problems.Problem:
    return problems.diabetes(5 if options.quick else 50)


def _until(blocks: Any, steps: int) -> None:
    while next(blocks).steps_done < steps:
        pass
