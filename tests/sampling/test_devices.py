"""Several devices: lanes are sharded over all of them, and how many there are changes nothing but the time."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]

SCRIPT = """
import sys
import numpy as np
from known_posteriors import gaussian, lanes_of, nuts_stage, program, rows, sample, stage
from bdlbench.inference.sgld import sgld
from bdlbench.runs.group import setup_jax
from bdlbench.sampling import lanes
from bdlbench.types import Schedule

setup_jax()
problem, found = gaussian(3, 5, copies=8), {}
stages = lambda: {
    "nuts": nuts_stage(4, 6, max_tree_depth=4),
    "sgld": stage("sgld", sgld, Schedule(1, 5, 8, 2, 7), step_size=0.01, decay=0.0, decay_steps=1.0),
}
used = set()
place = lanes.place
def placed(tree):
    out = place(tree)
    used.update(len(leaf.sharding.device_set) for leaf in lanes.jax.tree.leaves(out))
    return out
lanes.place = placed
for mode in ("mapped", "vmapped"):
    if mode == "vmapped":
        lanes.sequential = lambda: False
    for name, one in stages().items():
        outcome = sample(program((one,)), rows(problem), lanes_of(6))
        found[f"{mode} {name}"] = outcome.draws
        found[f"grads {mode} {name}"] = sum(block.num_grads for block in outcome.blocks)
np.savez(sys.argv[1], devices=lanes.mesh().size, used=sorted(used), **found)
"""


@pytest.fixture(scope="module")
def draws(tmp_path_factory):
    """Draws by number of devices: each number in a process of its own, since devices are made once a process."""
    folder, found = tmp_path_factory.mktemp("devices"), {}
    for count in (2, 4):
        environment = {
            **os.environ,
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")]),
        }
        path = folder / f"{count}.npz"
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(path)], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        with np.load(path) as file:
            found[count] = dict(file)
        assert found[count]["devices"] == count
        assert found[count]["used"].tolist() == [count], "every lane argument lies on all devices"
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nuts", "sgld"])
def test_two_and_four_devices_give_the_same_bits(draws, name):
    """Lanes taken one after another: 6 fill 2 devices, and on 4 they are padded to 8."""
    two, four = (draws[devices][f"mapped {name}"] for devices in (2, 4))
    assert len(two) == 6 and np.isfinite(two).all()
    assert len({lane.tobytes() for lane in two}) == 6
    np.testing.assert_array_equal(two, four)
    grads = [draws[devices][f"grads mapped {name}"] for devices in (2, 4)]
    np.testing.assert_array_equal(*grads)


@pytest.mark.parametrize("name", ["nuts", "sgld"])
def test_vmapped_lanes_agree_to_rounding(draws, name):
    """As on accelerators: several lanes a device in one batch of operations, on two devices and on four.

    A batched product rounds otherwise than a single one, by about 1e-7 of a state of order 1 a step. The 21 steps of
    SGLD contract. NUTS takes at most 15 leapfrogs a step, which together amplify a difference by the posterior's
    condition of 5 at most, and 10 steps, so few that no adaptation has fed rounding back often: 1e-3 is far above both
    and far below a draw's spread.
    """
    two, four, mapped = (
        draws[2][f"vmapped {name}"],
        draws[4][f"vmapped {name}"],
        draws[2][f"mapped {name}"],
    )
    assert two.shape == four.shape == mapped.shape
    assert mapped.std() > 0.1
    np.testing.assert_allclose(two, four, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(two, mapped, rtol=1e-3, atol=1e-3)
