"""The ways in which the operations run on a CPU: instruction sets, selections of the threshold, numbers of threads."""

import contextlib
import itertools

import pytest
import torch

from lpk import _core

INSTRUCTION_SETS = _core.instruction_sets()
SELECTIONS = ["auto", "bracket", "histogram"]


@contextlib.contextmanager
def configured(instruction_set="auto", selection="auto", threads=None):
    before = torch.get_num_threads()
    try:
        _core.set_instruction_set(instruction_set)
        _core.set_selection(selection)
        torch.set_num_threads(threads or before)
        yield
    finally:
        _core.set_instruction_set("auto")
        _core.set_selection("auto")
        torch.set_num_threads(before)


def configurations(selections=SELECTIONS, threads=(1, 2, 3)):
    """Runs a test in each. Stacked outermost it varies fastest, so that the cached reference serves a row."""
    each = itertools.product(INSTRUCTION_SETS, selections, threads)
    return pytest.mark.parametrize("configuration", list(each), indirect=True, ids=lambda c: "-".join(map(str, c)))
