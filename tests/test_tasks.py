"""Test that the table of tasks matches the network, the manifest and the runtime."""

from __future__ import annotations

from typing import get_args

import pytest

from m2h_deploy.bundle.manifest import OutputSpec
from m2h_deploy.runtime.postprocess import empty_prediction
from m2h_deploy.tasks import RESULTS, TABLE, TASKS, task_of


def test_manifests_accept_every_output_of_the_table():
    names = {values.name for task in TABLE.values() for values in (task.output, task.result)}
    assert set(get_args(OutputSpec.model_fields["name"].annotation)) == names


def test_a_result_belongs_to_the_task_that_it_is_made_from():
    assert list(RESULTS) == ["depth", "labels", "normals", "edges"]
    assert [task_of(name) for name in RESULTS] == list(TASKS)
    assert [task_of(task) for task in TASKS] == list(TASKS)


@pytest.mark.parametrize(
    ("task", "dtype", "shape"),
    [("depth", "float32", (4, 6)), ("semantics", "uint8", (4, 6)), ("normals", "float32", (4, 6, 3))],
)
def test_the_arrays_of_a_prediction_match_the_table(task, dtype, shape):
    array = getattr(empty_prediction(TASKS, 4, 6), task)
    assert (array.dtype, array.shape) == (dtype, shape)
