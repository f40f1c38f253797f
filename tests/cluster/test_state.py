"""Test the folder that a job's workers share."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest

from m2h_deploy.cluster.state import MOST_TRIES, State
from m2h_deploy.errors import M2HError


def test_a_worker_that_does_not_see_the_job_folder_reports_a_remedy(tmp_path):
    state = State.begin(tmp_path / "work")
    state.check()
    with pytest.raises(M2HError, match=r"the worker on .* does not see .*every node mounts"):
        dataclasses.replace(state, folder=tmp_path / "elsewhere").check()


def test_a_second_job_in_one_folder_ends_the_first(tmp_path):
    first = State.begin(tmp_path / "work")
    State.begin(tmp_path / "work").check()
    with pytest.raises(M2HError, match="another job uses this folder"):
        first.check()


def test_a_frame_is_skipped_after_too_many_workers_died_on_it(tmp_path):
    state = State.begin(tmp_path / "work")

    def die() -> None:
        with state.attempt("frame"):
            raise SystemExit  # like a process that dies, it leaves the mark

    for _ in range(MOST_TRIES):
        with pytest.raises(SystemExit):
            die()
    with pytest.raises(M2HError, match=f"{MOST_TRIES} workers died on it"), state.attempt("frame"):
        pass
    with State.begin(tmp_path / "work").attempt("frame"):  # the next job tries again
        pass


@pytest.mark.parametrize("reason", [None, M2HError("unreadable"), ValueError("unexpected")])
def test_a_finished_frame_leaves_no_mark(reason, tmp_path):
    state = State.begin(tmp_path / "work")
    for _ in range(MOST_TRIES + 1):
        with contextlib.suppress(M2HError, ValueError), state.attempt("frame"):
            if reason is not None:
                raise reason
    assert not list((state.folder / "tries").iterdir())
