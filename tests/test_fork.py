"""Kept checkpoints, and runs that fork from them: equal to the trunk up to there, and different by one key after it."""

from conftest import mistake
from test_resume import final_state

from slm import verify
from slm.files import run_folder
from slm.training.callbacks.checkpoints import kept_steps


def steps_in(folder) -> list[int]:
    """The steps of its checkpoints."""
    return sorted(map(run_folder.step_of, run_folder.checkpoints(folder)))


def test_chosen_checkpoints_are_saved_and_kept(run):
    """Also those of an earlier keep_at, and beside the newest two and the best."""
    folder = run("callbacks.checkpoints.keep_at=[log2,3]", "budget.steps=5", "schedule=constant")
    assert steps_in(folder) == [1, 2, 3, 4, 5]
    run("callbacks.checkpoints.keep_at=['every:7']", "budget.steps=16", "schedule=constant")
    assert steps_in(folder) == [1, 2, 3, 4, 7, 14, 15, 16]
    assert final_state(folder)[2] == 16
    assert list(verify.find_problems(folder)) == []
    assert kept_steps(["log2", 3, "every:500"], 1000) == {3, 500, 1000, *(2**k for k in range(10))}
    for entry in ("0", "log3", "true", "every:0"):
        with mistake("keep_at"):
            run(f"callbacks.checkpoints.keep_at=[{entry}]", folder="other")
