"""The drawing of the packages is that of the imports of today."""

from pathlib import Path

from tools.drawing import drawing, essential, layers


def test_the_drawing_is_up_to_date():
    """``make drawing`` writes it again."""
    assert (Path(__file__).parents[2] / "docs" / "packages.svg").read_text() == drawing()


def test_arrows_that_follow_from_others_are_left_out():
    """A diamond with a shortcut, in rows from the ground up."""
    imports = {"a": set(), "b": {"a"}, "c": {"a"}, "d": {"a", "b", "c"}}
    assert layers(imports) == [["a"], ["b", "c"], ["d"]]
    assert essential(imports) == [("b", "a"), ("c", "a"), ("d", "b"), ("d", "c")]
