"""A claim excludes others, says who holds it, and ends with its holder, however he ends."""

import multiprocessing
import os
import socket
import stat
import time

import pytest
from filelock import Timeout

from study.results import claims, files

HELD = {"SLURM_JOB_ID": "15", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WELLCOND_RESULTS", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("environment", "job"), [({}, ""), ({"SLURM_JOB_ID": "15"}, "15"), (HELD, "12_3")], ids=["none", "job", "array"]
)
def test_the_number_of_a_job(environment, job):
    assert claims.job_id(environment) == job


def test_a_claim_says_who_holds_it_as_long_as_it_is_held(folder, monkeypatch):
    for name, value in HELD.items():
        monkeypatch.setenv(name, value)
    assert claims.holder("one") is None
    with claims.claimed("one"):
        found = claims.holder("one")
        assert found[:3] == (socket.gethostname(), os.getpid(), "12_3")
        assert str(found) == f"job 12_3, process {os.getpid()} on {socket.gethostname()} since {found.since}"
        assert claims.holder("two") is None
        with pytest.raises(Timeout), claims.claimed("one"):
            pass
        assert claims.holder("one") == found
    assert claims.holder("one") is None
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["one.lock"]


def test_a_name_with_dots_has_a_note_of_its_own():
    with claims.claimed("cell-svd-r0.5-s0"), claims.claimed("cell-svd-r0.8-s0"):
        assert claims.holder("cell-svd-r0.5-s0") is not None
    assert claims.holder("cell-svd-r0.8-s0") is None


def _hold(name, held):
    with claims.claimed(name):
        held.set()
        time.sleep(600)


def test_the_note_of_a_killed_process_is_worth_nothing(folder):
    context = multiprocessing.get_context("fork")
    held = context.Event()
    process = context.Process(target=_hold, args=("one", held))
    process.start()
    held.wait(60)
    assert claims.holder("one").pid == process.pid
    process.kill()
    process.join(60)
    note = folder / "local" / "locks" / "one.json"
    assert note.exists()
    assert claims.holder("one") is None
    assert not note.exists()
    with claims.claimed("one"):
        assert claims.holder("one").pid == os.getpid()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_note_that_cannot_be_read_is_not_shown(folder, content):
    with claims.claimed("one"):
        (folder / "local" / "locks" / "one.json").write_text(content)
        assert claims.holder("one") is None


def test_a_lock_that_may_not_be_tried_is_not_shown(folder, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError

    with claims.claimed("one"):
        monkeypatch.setattr(files, "lock", refuse)
        assert claims.holder("one") is None


def test_others_may_read_a_note(folder):
    with claims.claimed("one"):
        mode = (folder / "local" / "locks" / "one.json").stat().st_mode
        assert stat.S_IMODE(mode) == 0o644
