"""How methods are named, and what is refused."""

import pytest

from hubdistill.compare.methods import parse_methods
from hubdistill.errors import InputError


def test_methods_replace_the_whole_loss_of_a_recipe():
    first, second, third = parse_methods("distillm2, gkd:loss.alpha=0.3:loss.beta=linear,recipe")
    assert first.overrides == ("loss={preset: distillm2}",)
    assert second.overrides == ("loss={preset: gkd}", "loss.alpha=0.3", "loss.beta=linear")
    assert third.overrides == ()
    assert (second.folder, third.preset) == ("gkd-loss.alpha-0.3-loss.beta-linear", None)


def test_a_list_of_numbers_has_commas_of_its_own():
    first, second = parse_methods("distillm2:loss.alpha_range=[0.01, 0.2]:loss.alpha=0.15,gkd")
    assert first.overrides == ("loss={preset: distillm2}", "loss.alpha_range=[0.01, 0.2]", "loss.alpha=0.15")
    assert (first.folder, second.name) == ("distillm2-loss.alpha_range-0.01-0.2-loss.alpha-0.15", "gkd")


def test_a_folder_has_a_name_that_file_systems_take():
    first, second = parse_methods(f"gkd:loss.alpha=0.{'3' * 300}1,gkd:loss.alpha=0.{'3' * 300}2")
    assert len(first.folder) == len(second.folder) == 100
    assert first.folder != second.folder


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "names no method"),
        (" , ", "names no method"),
        ("gdk", "'gdk' is no method; did you mean 'gkd'?"),
        ("xyz", "'xyz' is no method; choose from distillm2, "),
        ("gkd,kd,gkd", "'gkd' is there twice"),
        ("gkd:train.rounds=9", "'train.rounds=9' is no change of the loss"),
        ("gkd:loss.preset=kd", "is no change of the loss"),
        ("gkd:beta=paper", "write for example gkd:loss.beta=paper"),
    ],
)
def test_what_is_refused(text, why):
    with pytest.raises(InputError, match="--methods") as problem:
        parse_methods(text)
    assert why in str(problem.value)
