"""`SpikeSlabCoder` is an estimator of scikit-learn: its own suite of checks, and what they do not look at."""

import pickle

import numpy as np
import pytest
import torch
from conftest import assert_mean_equals
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks

import vsc_pyro as vsc

SMALL = {"encoder_hidden": 8, "max_iter": 2, "batch_size": 50, "device": "cpu", "random_state": 0}
# Without a linear decoder the bound is a mean over draws, whose random numbers are not the same for a datum elsewhere.
DRAWN = dict.fromkeys(
    ("check_methods_sample_order_invariance", "check_methods_subset_invariance"), "score_samples draws codes"
)


def expected_failures(estimator):
    return DRAWN if estimator.hidden else {}


@parametrize_with_checks(
    [vsc.SpikeSlabCoder(**SMALL), vsc.SpikeSlabCoder(2, hidden=(8,), threshold=0.5, **SMALL)],
    expected_failed_checks=expected_failures,
)
def test_it_passes_the_checks_of_scikit_learn(estimator, check):
    check(estimator)
