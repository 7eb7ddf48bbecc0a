"""What an interrupted process leaves behind is found again, or refused."""

import json
import time

import pytest
import torch

from study import paths
from study.results import checkpoints
from study.results.checkpoints import Header, Journal, OutOfTime, checkpoint_file, in_progress, read_checkpoint

CELLS = ("0123456789abcdef",)
STATE = {
    "epoch": 3,
    "optimizer": {"state": {0: {"momentum_buffer": torch.arange(6.0).reshape(2, 3).mT}}, "param_groups": [{"lr": 0.1}]},
    "curves": [[{"epoch": 1, "value": 0.5}]],
    "ranks": (3, 4),
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("WELLCOND_RESULTS", str(tmp_path))


def write(epoch=3, cells=CELLS):
    checkpoints.write_checkpoint(Header(cells, epoch, 5), {**STATE, "epoch": epoch})


def test_a_state_is_found_again_with_its_strides():
    write()
    found = read_checkpoint(CELLS, "cpu")
    assert found is not None
    buffer = found["optimizer"]["state"][0]["momentum_buffer"]
    assert torch.equal(buffer, torch.arange(6.0).reshape(2, 3).mT)
    assert buffer.stride() == (1, 3)
    assert buffer.untyped_storage().data_ptr() % 64 == 0
    assert (found["epoch"], found["curves"], found["ranks"]) == (3, STATE["curves"], (3, 4))
    assert in_progress() == {CELLS[0]: Header(CELLS, 3, 5)}


def test_there_is_nothing_at_first():
    assert read_checkpoint(CELLS, "cpu") is None
    assert in_progress() == {}


def test_cells_that_are_trained_together_have_one_state_in_any_order():
    cells = ("b" * 16, "a" * 16)
    write(2, cells)
    assert checkpoint_file(cells) == checkpoint_file(cells[::-1])
    assert read_checkpoint(cells[::-1], "cpu") is not None
    assert in_progress().keys() == set(cells)


DAMAGE = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "one bit": lambda data: data[:-100] + bytes([data[-100] ^ 1]) + data[-99:],
    "another header": lambda data: b"{}\n" + data.partition(b"\n")[2],
    "no header": lambda data: data.partition(b"\n")[2],
    "of another cell": lambda data: data.replace(CELLS[0].encode(), b"f" * 16, 1),
    "a list": lambda data: b"[]\n" + data.partition(b"\n")[2],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_what_is_damaged_is_not_used(damage):
    write()
    file = checkpoint_file(CELLS)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.warns(UserWarning, match=f"checkpoint {file.name} is not used"):
        assert read_checkpoint(CELLS, "cpu") is None


def test_the_state_before_stays_until_the_new_one_is_complete(monkeypatch):
    write(3)
    monkeypatch.setattr(checkpoints.os, "fsync", lambda handle: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write(4)
    assert read_checkpoint(CELLS, "cpu")["epoch"] == 3
    assert [path.name for path in (paths.local() / "checkpoints").iterdir()] == [checkpoint_file(CELLS).name]


def test_a_journal_computes_each_part_once():
    calls = []

    def compute():
        calls.append(1)
        return [1, 0, 1]

    for _ in range(2):
        journal = Journal("attack")
        assert journal.once("part", compute) == [1, 0, 1]
    assert len(calls) == 1
    assert Journal("another attack").entries == {}
    journal.close()
    assert Journal("attack").entries == {}
    journal.close()  # nothing is left to remove


def test_a_torn_line_is_a_part_that_is_not_done():
    journal = Journal("attack")
    journal.once("first", lambda: 1)
    with journal.path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"key": "second", "value": 2})[:-3])
    again = Journal("attack")
    assert again.entries == {"first": 1}
    assert again.once("second", lambda: 3) == 3
    assert Journal("attack").entries == {"first": 1, "second": 3}


def test_time_is_up_when_a_part_has_been_noted():
    journal = Journal("attack", deadline=time.monotonic() - 1)
    with pytest.raises(OutOfTime):
        journal.once("part", lambda: 1)
    assert Journal("attack").once("part", lambda: 2) == 1
