"""Every file of conf/inference has a law, and every module of methods a mutant, in its family's test file."""

import pytest
from laws import PresetLaws, families, module_of
from presets import PRESETS

MODULES = sorted({module_of(preset)[0] for preset in PRESETS})


@pytest.mark.parametrize("module", MODULES)
def test_a_family_holds_its_presets_to_laws(module):
    """``TestLaws`` of a family has a law for exactly the presets of its module, and at least one mutant."""
    family = module.rsplit(".", 1)[-1]
    found = families().get(family, PresetLaws)
    wanted = sorted(preset for preset in PRESETS if module_of(preset)[0] == module)
    assert sorted(found.laws) == wanted, (
        f"tests/inference/test_{family}.py must hold class TestLaws(PresetLaws) with a law of each of {wanted}"
    )
    assert found.mutants, (
        f"tests/inference/test_{family}.py: TestLaws has no mutants, so nothing shows that a law bites"
    )
    assert {*found.mutants, *found.small} <= set(wanted)
    assert set(found.everyday) <= set(found.mutants)


def test_no_family_is_without_its_module():
    """Each file with laws belongs to a module that exists."""
    assert set(families()) == {module.rsplit(".", 1)[-1] for module in MODULES}
