import numpy as np
import pytest

import vsc_pyro as vsc
from vsc_pyro._arguments import bool_or_auto, choice, natural_int, positive_float, positive_int, sizes, takes


def test_good_values_pass_through():
    assert positive_int("n", np.int64(3)) == 3
    assert natural_int("n", np.int64(0)) == 0
    assert positive_float("x", 2) == 2.0
    assert sizes("s", 5) == (5,)
    assert sizes("s", [1, 28, 28]) == (1, 28, 28)
    assert choice("letter", "a", {"a": 1}) == 1


def test_a_shape_has_at_least_one_dimension():
    for build in (lambda: vsc.SpikeSlabEncoder((), 2), lambda: vsc.NormalDecoder(2, ()), lambda: vsc.VSC((), 2)):
        with pytest.raises(ValueError, match=r"put_shape must hold at least one size, got \(\); pass 1"):
            build()


@pytest.mark.parametrize("value", [0, -1, 1.5, "3", None, True])
def test_positive_int_refuses(value):
    with pytest.raises(ValueError, match="n must be a whole number of at least 1, got "):
        positive_int("n", value)


@pytest.mark.parametrize("value", [-1, 1.5, "3", None, True])
def test_natural_int_refuses(value):
    with pytest.raises(ValueError, match="n must be a whole number of at least 0, got "):
        natural_int("n", value)


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "3", None, True])
def test_positive_float_refuses(value):
    with pytest.raises(ValueError, match="x must be a finite number above 0, got "):
        positive_float("x", value)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x, False),
        (lambda x, y: x, True),
        (lambda *each: each, True),
        (lambda x, y, *, z: x, False),
        (dict, True),  # no signature
        (vsc.Ramp(0, 1, length=2), False),
        (3, False),
    ],
)
def test_a_function_takes_two_arguments(function, expected):
    assert takes(function, 2) is expected


def test_choice_lists_what_is_known():
    with pytest.raises(ValueError, match="unknown letter 'c'; known are 'a', 'b'"):
        choice("letter", "c", {"b": 1, "a": 2})


def test_yes_no_or_by_itself():
    assert [bool_or_auto("compile", value) for value in (True, False, 1, "auto")] == [True, False, True, "auto"]
    with pytest.raises(ValueError, match="compile must be True, False or 'auto', got 'yes'"):
        bool_or_auto("compile", "yes")
    with pytest.raises(ValueError, match=r"compile must be True, False or 'auto', got array\(\[1, 2\]\)"):
        bool_or_auto("compile", np.array([1, 2]))
