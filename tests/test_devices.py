"""Several devices: lanes are sharded over all of them, and how many there are changes nothing but the time."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent

SCRIPT = """
import sys
import numpy as np
import optax
from known_posteriors import gaussian, lanes_of, nuts_stage, program, rows, sample, stage
from bdlbench.inference.sgld import sgld
from bdlbench.inference.svi import svi
from bdlbench.sampling import lanes
from bdlbench.types import Schedule

problem, found = gaussian(3, 5, copies=8), {}
stages = lambda: {
    "nuts": nuts_stage(8, 12, max_tree_depth=4),
    "sgld": stage("sgld", sgld, Schedule(1, 5, 8, 2, 7), step_size=0.01, decay=0.0, decay_steps=1.0),
    "svi": stage(
        "svi", svi, Schedule(1, 20, 8, 0, 7), optimizer=optax.adam(0.05), guide="mean_field", init_scale=0.1,
        num_particles=1, rank=None,
    ),
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
        for count in (3, 8):
            outcome = sample(program((one,)), rows(problem), lanes_of(count))
            found[f"{mode} {name} {count}"] = outcome.draws
            found[f"grads {mode} {name} {count}"] = sum(block.num_grads for block in outcome.blocks)
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
            "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]),
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


@pytest.mark.parametrize("name", ["nuts", "sgld", "svi"])
@pytest.mark.parametrize("count", [3, 8])
def test_two_and_four_devices_give_the_same_bits(draws, name, count):
    """Lanes taken one after another: 8 fill 2 and 4 devices, 3 fill neither and are padded to 4."""
    two, four = (draws[devices][f"mapped {name} {count}"] for devices in (2, 4))
    assert len(two) == count and np.isfinite(two).all()
    assert len({lane.tobytes() for lane in two}) == count
    np.testing.assert_array_equal(two, four)
    grads = [draws[devices][f"grads mapped {name} {count}"] for devices in (2, 4)]
    np.testing.assert_array_equal(*grads)


@pytest.mark.parametrize("name", ["nuts", "sgld", "svi"])
@pytest.mark.parametrize("count", [3, 8])
def test_vmapped_lanes_agree_to_rounding(draws, name, count):
    """As on accelerators: several lanes a device in one batch of operations, on two devices and on four.

    A batched product rounds otherwise than a single one, by about 1e-7 a step of a state of order 1; the posterior's
    condition of 5 and 40 leapfrogs a draw at most amplify that over 20 steps by less than 1e4 in all.
    """
    two, four, mapped = (
        draws[2][f"vmapped {name} {count}"],
        draws[4][f"vmapped {name} {count}"],
        draws[2][f"mapped {name} {count}"],
    )
    assert two.shape == four.shape == mapped.shape
    np.testing.assert_allclose(two, four, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(two, mapped, rtol=1e-3, atol=1e-3)
