"""Memory: the estimate against what XLA allots, batches cut where memory is short, and what running out leaves behind."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from presets import mostly

from bdlbench.runs import configuration, group, memory, sweep
from bdlbench.runs import group as group_module
from bdlbench.runs.arrangement import arrange
from bdlbench.runs.job import make_job
from bdlbench.runs.outcome import Outcome
from bdlbench.runs.progress import Silent
from bdlbench.sampling import lanes, predictions
from bdlbench.sampling.programs import DRAW_BYTES, StagePrograms
from bdlbench.store import Store

ROOT = Path(__file__).parents[2]
SMALL = ["data=cosine_gap", "data.n_cluster=10", "data.n_test=8", "network.width=4", "progress=off", "metrics=[lppd]"]
SHORT = {
    "nuts": [
        "inference.schedule={num_chains: 2, num_warmup: 5, num_samples: 40}",
        "inference.max_tree_depth=3",
        "inference.before.0.schedule.num_warmup=5",
    ],
    "sgld": ["inference.schedule={num_chains: 2, num_warmup: 5, num_samples: 40, thinning: 2, batch_size: 8}"],
    "svi_fullrank": [
        "inference.schedule={num_chains: 2, num_warmup: 5, num_samples: 40, thinning: 0}",
        "inference.before.0.schedule.num_warmup=5",
    ],
    "laplace": ["inference.schedule={num_chains: 2, num_samples: 40}", "inference.before.0.schedule.num_warmup=5"],
    "svgd": ["inference.schedule={num_chains: 2, num_warmup: 5}"],
}


def job(*more):
    """A job that has been checked."""
    return make_job(*configuration.compose([*SMALL, *more]))


@pytest.mark.slow
@pytest.mark.parametrize("method", mostly(SHORT, "sgld", "svgd"))
def test_the_estimate_is_of_the_size_that_xla_allots(method, store_path, monkeypatch):
    """Arguments, results and temporaries of every program of a run: the largest is within the estimate, or nearly.

    The estimate counts without fusion, so it may be well above; that it is within a factor of 30 of the largest
    program keeps it from being vacuous. It may fall short by a quarter: the plan keeps 40 % in reserve for that.
    """
    found = []
    original = StagePrograms.call

    def call(self, name, *args, **options):
        out = original(self, name, *args, **options)
        kind = "block" if name.startswith("block_") and not self.two_bodies else name
        found.append(self._compiled[kind])
        return out

    monkeypatch.setattr(StagePrograms, "call", call)
    monkeypatch.setattr(predictions, "_COMPILED", {})
    one = job(f"inference={method}", *SHORT[method], "network.width=100")
    need = memory.footprint([one])
    (record,) = group.run_group([one], Store(store_path), Silent())
    assert record["status"] == "complete", record["reason"]

    def total(program):
        stats = program.memory_analysis()
        return stats.temp_size_in_bytes + stats.output_size_in_bytes + stats.argument_size_in_bytes

    largest = max(total(program) for program in [*found, *predictions._COMPILED.values()])
    assert 0.75 * largest <= need.on_device(1) <= 30 * largest


def test_lanes_share_temporaries_on_a_cpu_and_not_under_vmap(monkeypatch):
    """On a CPU, the lanes of a device share the temporaries of one lane. Under vmap each lane has its own."""
    need = memory.Footprint(lane=10, working=1000, dataset=7, host=100, chains=4, num_datasets=3, dim=5)
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert need.on_device(5) == 10 * 10 + 1000 + 3 * 7
    assert need.on_host(2) == 2 * (4 * 10 + 1000 + 2 * 7) + 2 * 7 + 8 * 100
    monkeypatch.setattr(lanes, "sequential", lambda: False)
    assert need.on_device(5) == 10 * 10 + 10 * 1000 + 3 * 7
    assert need.on_device(1) == 2 * 10 + 2 * 1000 + 7


@pytest.mark.slow
@pytest.mark.parametrize("room", [1.0, 3.0, 7.5])
def test_the_most_jobs_that_fit(room, monkeypatch):
    """The largest number of jobs within the planned share of the free memory; at least one."""
    jobs = [job("inference=sgld", *SHORT["sgld"], f"seed={seed}") for seed in range(8)]
    need = memory.footprint(jobs)
    free = room / memory.SAFETY * need.on_host(1)
    monkeypatch.setattr(memory, "host_room", lambda: free)
    fit = memory.jobs_that_fit(jobs)
    assert need.on_host(fit) <= room * need.on_host(1)
    assert fit == 8 or need.on_host(fit + 1) > room * need.on_host(1)
    assert fit > 1 or room == 1.0
    assert memory.jobs_that_fit(jobs, share=0.01) == 1


@pytest.mark.slow
def test_a_group_is_cut_where_memory_is_short(store_path, monkeypatch):
    """If two of five jobs fit into memory, a sweep runs batches of two, two and one, and all five are complete."""
    made = [configuration.compose([*SMALL, "inference=sgld", *SHORT["sgld"], f"store.path={store_path}", f"seed={s}"])
            for s in range(5)]  # fmt: skip
    jobs = [make_job(*each) for each in made]
    need = memory.footprint(jobs)
    free = (need.on_host(2) + 1) / memory.SAFETY
    assert free * memory.SAFETY < need.on_host(3)
    monkeypatch.setattr(memory, "host_room", lambda: free)
    sizes = []
    together = group.run_group

    def run_group(jobs, *args, **options):
        sizes.append(len(jobs))
        return together(jobs, *args, **options)

    monkeypatch.setattr(group_module, "run_group", run_group)
    outcome = Outcome()
    sweep.run_sweep([(*each, "") for each in made], outcome, max_lanes=256)
    assert sizes == [2, 2, 1]
    assert outcome.exit_code == 0 and len(outcome.records) == 5


@pytest.mark.slow
def test_a_group_that_runs_out_is_halved_and_one_that_cannot_run_says_so(store_path, monkeypatch, capsys):
    """If memory runs out, the group is halved.

    A job that fails alone has a record with sizes and a remedy, and exit code 1.
    """
    original = group._run_lanes

    def short(part, *args, **options):
        if len(part.jobs) > 2 or any(job.seed == 3 for job in part.jobs):
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5368709120 bytes.")
        return original(part, *args, **options)

    monkeypatch.setattr(group_module, "_run_lanes", short)
    own = [o for o in SMALL if o != "progress=off"]
    made = [configuration.compose([*own, "progress=lines", "inference=sgld", *SHORT["sgld"], f"store.path={store_path}",
                            f"seed={s}"]) for s in range(4)]  # fmt: skip
    outcome = Outcome()
    records = sweep.run_sweep([(*each, "") for each in made], outcome, max_lanes=256)
    assert [record["status"] for record in records] == ["complete"] * 3 + ["failed"]
    reason = records[3]["reason"]
    assert reason.startswith("out of memory: 5 GB were asked for at once, ")
    assert "a job of 2 chains x 14 weights needs about " in reason and "use fewer chains" in reason
    assert "RESOURCE_EXHAUSTED" in records[3]["traceback"]
    assert outcome.exit_code == 1
    said = capsys.readouterr().err
    assert "4 runs together failed (out of memory): trying halves" in said
    assert outcome.closing()[0] == "3 complete, 1 failed or diverged, 0 refused"
    assert outcome.closing()[1].startswith(f"  {records[3]['id']}: failed: out of memory: 5 GB")


def test_what_a_failed_group_held_is_free_before_its_halves_run(store_path, monkeypatch):
    """An error that is being handled keeps its frames, and these keep the group's arrays."""
    import weakref

    class Large:
        """A large array of a group."""

    held, seen = [], []

    def run_group(jobs, *args, **options):
        seen.append([ref() for ref in held])
        large = Large()
        held.append(weakref.ref(large))
        if len(jobs) > 1:
            raise MemoryError
        return [{"status": "complete"}]

    monkeypatch.setattr(group_module, "run_group", run_group)
    jobs = [job("inference=sgld", *SHORT["sgld"], f"seed={seed}") for seed in range(4)]
    sweep.run_together(jobs, Store(store_path), Silent(), 0.0)
    assert len(seen) == 7
    assert all(one is None for before in seen for one in before)


REAL = """
import resource, sys
from bdlbench.inference import svi
from bdlbench.runs.configuration import compose
from bdlbench.runs.group import run_group
from bdlbench.runs.job import make_job
from bdlbench.runs.progress import Silent
from bdlbench.sampling.devices import setup_jax
from bdlbench.store import Store
svi.fits = lambda *args, **kwargs: None  # it refuses such a guide
setup_jax()
import jax
jax.block_until_ready(jax.jit(lambda x: x @ x)(jax.numpy.ones((8, 8))))
job = make_job(*compose(sys.argv[2:]))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, resource.RLIM_INFINITY))
(record,) = run_group([job], Store(sys.argv[1]), Silent())
print(record["status"], record["reason"])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc and a limit on address space")
def test_xla_that_really_runs_out_leaves_a_record(store_path):
    """A full-rank guide with 21,002 weights needs 1.6 GB, and the process may allocate only 1 GB more."""
    wanted = [*SMALL, "inference=svi_fullrank", "network.width=7000", "inference.schedule.num_warmup=5"]
    wanted.append("limits.memory=off")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", REAL, str(store_path), *wanted], capture_output=True, text=True, env=environment
    )
    assert done.stdout.startswith("failed out of memory: "), done.stdout + done.stderr[-2000:]
    assert "1.64 GB were asked for at once" in done.stdout and "use fewer chains" in done.stdout
    (record,) = Store(store_path).rows()
    assert record["status"] == "failed" and record["reason"].startswith("out of memory")


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (MemoryError(), True),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 3 bytes"), True),
        (RuntimeError("std::bad_alloc"), True),
        (np._core._exceptions._ArrayMemoryError((2**40,), np.dtype(float)), True),
        (ValueError("memory of a fish"), False),
    ],
)
def test_errors_that_mean_memory(error, is_memory):
    """The errors of XLA, NumPy, C++ and Python are recognised."""
    assert memory.is_out_of_memory(error) is is_memory


def test_limits_of_the_machine_are_read(tmp_path):
    """The free memory is that of the kernel, or the smallest rest of the limits of the control groups."""
    info = tmp_path / "meminfo"
    info.write_text("MemTotal: 100 kB\nMemAvailable:      42 kB\n")
    assert memory._free(info) == 42 * 1024
    inner = tmp_path / "cgroup" / "job" / "step"
    inner.mkdir(parents=True)
    own = tmp_path / "own"
    own.write_text("0::/job/step\n")
    for folder, limit, used in ((inner, "max", 5), (inner.parent, "1000", 700)):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text("anon 1\ninactive_file 100\n")
    assert memory._control_group(tmp_path / "cgroup", own) == 400
    assert memory._control_group(tmp_path / "none", own) == float("inf")
    assert 0 < memory.host_room() < float("inf")
    info.write_text("MemTotal: 100 kB\nSwapTotal:      42 kB\n")
    assert memory._whole(info) == 142 * 1024
    assert memory.host_room() <= memory.host_limit() < float("inf")


def test_control_groups_of_version_1_are_read(tmp_path):
    """In version 1 memory has a separate tree, and a group without a limit has a very large one."""
    own = tmp_path / "own"
    own.write_text("11:cpu,cpuacct:/job\n4:memory:/job/step\n1:name=systemd:/job\n")
    inner = tmp_path / "cgroup" / "memory" / "job" / "step"
    inner.mkdir(parents=True)
    for folder, limit, used in ((inner, 2**63 - 4096, 5), (inner.parent, 1000, 700)):
        (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
        (folder / "memory.usage_in_bytes").write_text(f"{used}\n")
        (folder / "memory.stat").write_text("cache 9\ninactive_file 1\ntotal_inactive_file 100\n")
    assert memory._control_group(tmp_path / "cgroup", own) == 400
    assert min(limit for limit, _ in memory._control_groups(tmp_path / "cgroup", own)) == 1000


def test_what_can_never_fit_is_refused_with_a_record(store_path, monkeypatch):
    """The job is refused before any array is made, unless ``limits.memory=off`` or the machine has enough memory."""
    asked = [*SMALL, "inference=sgld", *SHORT["sgld"], f"store.path={store_path}"]
    made = make_job(*configuration.compose(asked))
    shared, lane, _, _ = arrange([made])
    lane = lane._replace(active=np.ones(len(lane.dataset), bool))
    stage = StagePrograms(made.program, 0, shared, lane)
    least = 2 * (4 * stage.dim + stage.capacity * 4 * stage.dim)  # two chains: theta and its draws at least
    with monkeypatch.context() as patch:
        patch.setattr(memory, "host_limit", lambda: least - 1)
        patch.setattr(lanes, "replicate", lambda _: pytest.fail("it has started"))
        record = group.run(asked)
    assert record["status"] == "failed" and Store(store_path).record(record["id"]) == record
    assert record["reason"].startswith(
        f"out of memory before it started: 2 chains x {stage.dim} weights and the data need"
    )
    assert "limits.memory=off" in record["reason"]
    monkeypatch.setattr(memory, "host_limit", lambda: 0.0)
    assert group.run([*asked, "limits.memory=off"])["status"] == "complete"


@pytest.mark.parametrize("method", ["smc", "svgd"])
def test_a_population_fills_its_slots_with_all_its_particles(method):
    """The draws on the device take at most one megabyte, or are a single draw."""
    one = job(f"inference={method}", "network.width=100")
    shared, lane, _, _ = arrange([one])
    lane = lane._replace(active=np.ones(len(lane.dataset), bool))
    stage = StagePrograms(one.program, len(one.program.stages) - 1, shared, lane)
    particles = stage.draw_shape.shape[0]
    assert particles > 1 and stage.draw_shape.shape == (particles, stage.dim)
    assert stage.capacity == min(stage.schedule.num_samples, max(1, DRAW_BYTES // (4 * particles * stage.dim)))
