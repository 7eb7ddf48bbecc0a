"""The results folder: what is written is read back, whole or not at all, also by two writers at once."""

import json
import math
import multiprocessing
import re
import stat
from pathlib import Path

import pandas as pd
import pandas.api.types as types
import pytest

from study import paths
from study.results import files
from study.results import store as results
from study.results import tables as schema
from study.results.store import Measurement

# the columns that the study promises to its readers
PROMISED = {
    "runs": (
        "run_id, dataset, model, method, label, ratio, max_cond, seed, epochs, rank_fraction, n_params_dense, "
        "n_params_trained, n_params_deployed, flops_dense, flops_deployed, n_test, n_correct, kappa_max, "
        "orth_error_max, wall_s, peak_bytes, device, status"
    ),
    "robustness": "run_id, attack, norm, eps, n_examples, n_correct",
    "curves": "run_id, epoch, layer, quantity, value",
    "spectra": "run_id, layer, index, singular_value",
}
ATTACKS = [Measurement("fgsm", 0.1, 100), Measurement("fgsm", 2 / 255, 100)]


def spec_of(run_id, **changes):
    return {"method": run_id.split("-")[0], "seed": 0, "train": {"lr": 0.1, "epochs": 2}, **changes}


def tables(run_id, **changes):
    run = {
        "run_id": run_id,
        "method": "condlr",
        "label": "CondLR, τ = 0.1",
        "seed": 0,
        "n_correct": 9876,
        "n_test": 10_000,
        "flops_dense": 12_345_678_901,
        "kappa_max": 1.1,
        "status": "done",
        "spec_hash": f"hash-{run_id}",
        **changes,
    }
    return {
        "runs": [run],
        "robustness": [
            {"run_id": run_id, "attack": attack, "norm": "linf", "eps": eps, "n_examples": n, "n_correct": 50}
            for attack, eps, n, *_ in ATTACKS
        ],
        "curves": [{"run_id": run_id, "epoch": 1, "layer": "", "quantity": "train_loss", "value": 1 / 3}],
        "spectra": [{"run_id": run_id, "layer": "fc1", "index": k, "singular_value": 1.5 - k} for k in range(2)],
    }


def save(folder, run_id, **changes):
    provenance = {"spec": spec_of(run_id), "spec_hash": f"hash-{run_id}"}
    results.save(folder, run_id, tables(run_id, **changes), provenance)


def load(folder, *run_ids, specs=None, attacks=ATTACKS):
    return results.load(folder, specs or {r: spec_of(r) for r in run_ids}, {r: f"hash-{r}" for r in run_ids}, attacks)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WELLCOND_RESULTS", str(tmp_path))
    return tmp_path / "mine"


def test_columns_are_those_promised():
    for table, columns in PROMISED.items():
        assert set(columns.split(", ")) <= set(results.COLUMNS[table])


def test_what_is_saved_is_loaded(folder):
    save(folder, "a-s0")
    save(folder, "b-s0")
    found = load(folder, "a-s0", "b-s0", "c-s0")
    assert found.runs["run_id"].tolist() == ["a-s0", "b-s0"]
    assert found.missing == ("c-s0",)
    assert found.runs["n_correct"].tolist() == [9876, 9876]
    assert found.runs["label"][0] == "CondLR, τ = 0.1"
    assert found.runs["ratio"].isna().all()
    assert found.robustness["eps"].tolist() == pytest.approx(2 * [0.1, 2 / 255], rel=1e-8)
    assert found.curves["value"].tolist() == pytest.approx(2 * [1 / 3], rel=1e-8)
    assert found.spectra["singular_value"].tolist() == 2 * [1.5, 0.5]
    assert found.provenance["a-s0"]["spec"] == spec_of("a-s0")
    results.fold(folder)
    assert sorted(path.name for path in folder.glob("[!.]*")) == sorted(
        [*(f"{table}.csv" for table in results.COLUMNS), "provenance.json"]
    )


def test_files_are_plain_text_that_anyone_may_read(folder):
    save(folder, "a-s0")
    results.fold(folder)
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o644 for path in folder.glob("[!.]*"))
    frame = pd.read_csv(folder / "runs.csv")
    assert list(frame.columns) == list(results.COLUMNS["runs"])
    assert json.loads((folder / "provenance.json").read_text())["runs"].keys() == {"a-s0"}


def test_nothing_is_there_before_the_first_run(folder):
    found = load(folder, "a-s0")
    assert found.missing == ("a-s0",)
    assert all(found.tables[table].empty for table in results.COLUMNS)
    assert not folder.exists()


def test_rows_of_a_run_are_replaced(folder):
    save(folder, "a-s0")
    save(folder, "b-s0")
    save(folder, "a-s0", n_correct=9000)
    found = load(folder, "a-s0", "b-s0")
    assert dict(zip(found.runs["run_id"], found.runs["n_correct"], strict=True)) == {"a-s0": 9000, "b-s0": 9876}
    assert (len(found.robustness), len(found.curves), len(found.spectra)) == (4, 2, 4)


def test_counts_survive_beside_a_run_without_them(folder):
    """A diverged run leaves blanks, which must not turn the other runs' counts into rounded floating-point numbers."""
    save(folder, "a-s0")
    provenance = {"spec": {}, "spec_hash": "hash-b-s0"}
    row = {"run_id": "b-s0", "status": "diverged", "spec_hash": "hash-b-s0"}
    results.save(folder, "b-s0", {"runs": [row]}, provenance)
    save(folder, "c-s0")
    runs = load(folder, "a-s0", "b-s0", "c-s0").runs.set_index("run_id")
    assert runs["flops_dense"]["a-s0"] == runs["flops_dense"]["c-s0"] == 12_345_678_901
    assert math.isnan(runs["n_correct"]["b-s0"])
    results.fold(folder)
    assert ",12345678901," in (folder / "runs.csv").read_text()
    assert not re.search(r"\d\.0,", (folder / "runs.csv").read_text())


def test_a_run_is_done_only_with_its_specification_and_all_its_attacks(folder):
    save(folder, "a-s0")
    hashes = {"a-s0": "hash-a-s0", "b-s0": "hash-b-s0"}
    assert results.done(folder, hashes, ATTACKS) == {"a-s0"}
    assert results.done(folder, hashes, []) == {"a-s0"}
    assert results.done(folder, {"a-s0": "another"}, ATTACKS) == set()
    assert results.done(folder, hashes, [*ATTACKS, Measurement("fgsm", 0.2, 100)]) == set()
    assert results.done(folder, hashes, [*ATTACKS, Measurement("pgd_l2", 0.1, 100)]) == set()
    # with other steps, or on other images, it is another measurement; more images than there are means all
    assert results.done(folder, hashes, [ATTACKS[0]._replace(options="steps=40")]) == set()
    assert results.done(folder, hashes, [ATTACKS[0]._replace(n_examples=99)]) == set()
    assert results.done(folder, hashes, [ATTACKS[0]._replace(n_examples=None)]) == set()
    save(folder, "a-s0", n_test=100, n_correct=90)
    assert results.done(folder, hashes, [ATTACKS[0]._replace(n_examples=None)]) == {"a-s0"}
    assert results.done(folder, hashes, [ATTACKS[0]._replace(n_examples=5000)]) == {"a-s0"}
    save(folder, "b-s0", status="diverged")
    assert "b-s0" in results.done(folder, hashes, [Measurement("pgd_l2", 9.0)])


@pytest.mark.parametrize(("wanted", "n"), [(None, 40), (10, 10), (40, 40), (500, 40)])
def test_a_measurement_knows_its_row_before_and_after_the_file(folder, wanted, n):
    row = {"run_id": "a-s0", "attack": "fgsm", "eps": 2 / 255, "options": "", "n_examples": n, "n_correct": 3}
    asked = Measurement("fgsm", 2 / 255, wanted).among(40)
    assert asked == results.measurement(row) == Measurement("fgsm", 0.00784313725, n)
    results.add(folder, "a-s0", "attacks", [row], {})
    (saved,) = results.rows_of(folder, "attacks", "a-s0")
    assert results.measurement(saved) == asked
    assert saved["eps"] != row["eps"]


def test_results_of_another_specification_are_refused(folder):
    """The error names what changed, also inside the protocol."""
    save(folder, "a-s0")
    changed = {"a-s0": spec_of("a-s0", seed=1, train={"lr": 0.2, "epochs": 2})}
    with pytest.raises(ValueError, match=r"a-s0 is of another specification") as caught:
        results.load(folder, changed, {"a-s0": "another"}, ATTACKS)
    assert "changed: seed 0 -> 1, train.lr 0.1 -> 0.2" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="changed: the definition of the hash"):
        results.load(folder, {"a-s0": spec_of("a-s0")}, {"a-s0": "another"}, ATTACKS)


def test_runs_outside_the_grid_are_left_out(folder):
    save(folder, "a-s0")
    save(folder, "old-s9")
    found = load(folder, "a-s0")
    assert found.runs["run_id"].tolist() == ["a-s0"]
    assert set(found.robustness["run_id"]) == set(found.provenance) == {"a-s0"}


def test_select_joins_the_description_of_each_run(folder):
    save(folder, "a-s0", ratio=0.8, max_cond=1.1)
    joined = load(folder, "a-s0").select("robustness")
    assert joined[["method", "ratio", "max_cond", "seed"]].drop_duplicates().to_numpy().tolist() == [
        ["condlr", 0.8, 1.1, 0]
    ]
    assert len(joined) == 2


WRITTEN = ["provenance.json", *(f"{table}.csv" for table in results.COLUMNS)]


def crashing(monkeypatch, function, when):
    """Let a method of Path raise KeyboardInterrupt where `when` is true of its target."""
    original = getattr(Path, function)

    def crash(self, target):
        if when(Path(target)):
            raise KeyboardInterrupt
        return original(self, target)

    monkeypatch.setattr(Path, function, crash)


def written(folder):
    return {path.name for path in folder.iterdir()} - {".locks", ".added"}


def test_a_crash_before_a_cell_is_whole_leaves_nothing_of_it(folder, monkeypatch):
    save(folder, "a-s0")
    with monkeypatch.context() as patch:
        crashing(patch, "rename", lambda target: target.name.startswith("b-s0"))
        with pytest.raises(KeyboardInterrupt):
            save(folder, "b-s0")
    assert load(folder, "a-s0", "b-s0").missing == ("b-s0",)
    save(folder, "b-s0")
    assert load(folder, "a-s0", "b-s0").missing == ()
    assert sorted(path.name for path in (folder / ".added").iterdir()) == ["a-s0@1", "b-s0@1"]


@pytest.mark.parametrize("name", WRITTEN)
def test_a_crash_at_any_file_of_the_merging_loses_nothing(folder, monkeypatch, name):
    save(folder, "a-s0")
    results.fold(folder)
    save(folder, "a-s0", n_correct=9000)
    save(folder, "b-s0")
    with monkeypatch.context() as patch:
        crashing(patch, "replace", lambda target: target.name == name)
        with pytest.raises(KeyboardInterrupt):
            results.fold(folder)
    for _ in range(2):
        found = load(folder, "a-s0", "b-s0")
        assert found.missing == ()
        assert (len(found.runs), len(found.robustness), len(found.curves), len(found.spectra)) == (2, 4, 2, 4)
        assert found.runs.set_index("run_id")["n_correct"].to_dict() == {"a-s0": 9000, "b-s0": 9876}
        results.fold(folder)
    assert {path.name for path in folder.iterdir()} - {".locks"} == set(WRITTEN)  # no temporary file is left


def test_a_crash_while_additions_are_removed_loses_nothing(folder, monkeypatch):
    save(folder, "a-s0")
    results.add(folder, "a-s0", "filters", [{"run_id": "a-s0", "layer": "fc1", "index": 0, "norm": 1.5}], {})
    with monkeypatch.context() as patch:
        patch.setattr(results.shutil, "rmtree", lambda path: (path / "a-s0@2" / "runs.csv").unlink())
        results.fold(folder)
    found = load(folder, "a-s0")
    assert found.missing == ()
    assert (len(found.runs), len(found.robustness), len(found.filters)) == (1, 2, 1)


def test_merging_changes_nothing_that_is_read(folder):
    for run_id in ("a-s0", "b-s0", "c-s0"):
        save(folder, run_id)
        if run_id == "a-s0":
            results.fold(folder)
    save(folder, "a-s0", n_correct=9000)
    results.add(folder, "b-s0", "filters", [{"run_id": "b-s0", "layer": "fc1", "index": 0, "norm": 1 / 3}], {"x": 1})
    before = load(folder, "a-s0", "b-s0", "c-s0")
    read = {table: before.tables[table] for table in (*results.COLUMNS, "filters")}
    results.fold(folder)
    after = load(folder, "a-s0", "b-s0", "c-s0")
    for table, frame in read.items():
        pd.testing.assert_frame_equal(frame, after.tables[table], check_dtype=False)
    assert after.provenance == before.provenance
    assert not (folder / ".added").exists()
    text = {path.name: path.read_text() for path in folder.glob("[!.]*")}
    results.fold(folder)
    assert {path.name: path.read_text() for path in folder.glob("[!.]*")} == text


def test_what_was_measured_afterwards_goes_with_the_weights(folder):
    row = {"run_id": "a-s0", "layer": "fc1", "index": 0, "norm": 1.5}
    for fold in (results.fold, lambda folder: None):
        for weights, left in (("one", 0), ("one", 1), ("two", 0)):
            about = {"spec": spec_of("a-s0"), "spec_hash": "hash-a-s0", "weights": weights}
            results.save(folder, "a-s0", tables("a-s0"), about)
            fold(folder)
            assert len(load(folder, "a-s0").filters) == left
            assert ("filters" in load(folder, "a-s0").provenance["a-s0"]) == bool(left)
            results.add(folder, "a-s0", "filters", [row], {"commit": "x"})
            fold(folder)
            assert len(load(folder, "a-s0").filters) == 1


def write_many(folder, writer):
    for k in range(8):
        save(folder, f"w{writer}-s{k}")


def test_two_processes_saving_at_once_lose_nothing(folder):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_many, args=(folder, writer)) for writer in range(2)]
    for process in writers:
        process.start()
    for process in writers:
        process.join(60)
    assert [process.exitcode for process in writers] == [0, 0]
    run_ids = [f"w{writer}-s{k}" for writer in range(2) for k in range(8)]
    found = load(folder, *run_ids)
    assert found.missing == ()
    assert (len(found.runs), len(found.robustness), len(found.provenance)) == (16, 32, 16)


@pytest.mark.parametrize("below", ["", "mine"])
def test_a_folder_that_cannot_be_written(tmp_path, below):
    """Below a regular file: refused to everybody, the superuser of a container included."""
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(ValueError, match=r"results = '.*file.*': must be a writable folder \(") as caught:
        files.check_writable(blocked / below)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("runs.csv", "run_id,method\na-s0,dense\n", r"columns = .*: must be including dataset, .* in .*runs\.csv"),
        ("robustness.csv", 'run_id,"attack\n', r"file = .*robustness\.csv': must be a readable CSV"),
        ("runs.csv", "", r"file = .*runs\.csv': must be a readable CSV"),
        ("provenance.json", '{"runs": ', r"file = .*provenance\.json': must be readable JSON"),
        ("provenance.json", "{}", r"file = .*provenance\.json': must be readable JSON with a key 'runs'"),
        ("provenance.json", "[]", r"file = .*provenance\.json': must be readable JSON with a key 'runs'"),
    ],
)
def test_damaged_files_are_named(folder, name, content, message):
    save(folder, "a-s0")
    results.fold(folder)
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load(folder, "a-s0")


def test_locks_exclude_each_other_and_are_freed(folder):
    with files.lock("one"), pytest.raises(TimeoutError), files.lock("one", timeout=0):
        pass
    with files.lock("one", timeout=0), files.lock("two", timeout=0):
        pass


KINDS = {
    float: types.is_float_dtype,
    bool: types.is_bool_dtype,
    str: lambda dtype: types.is_string_dtype(dtype) or types.is_object_dtype(dtype),
    int: types.is_integer_dtype,
}


@pytest.mark.parametrize("experiment", ["mnist_lenet5", "mnist_compression_aware", "no results"])
def test_columns_have_their_types(experiment):
    """Also those of a table without rows; a whole number beside a blank is a float."""
    for table in (*results.COLUMNS, *results.AFTERWARDS):
        frame = results.read_table(paths.results() / experiment, table)
        for column, kind in schema.columns(table).items():
            expected = float if kind is int and frame[column].isna().any() else kind
            assert KINDS[expected](frame[column].dtype), (table, column, frame[column].dtype)


def test_an_interruption_while_a_table_is_read_is_no_damage(monkeypatch):
    """Seen when a process was told to stop while it read: the exception was lost, and pandas said this."""

    def interrupted(*_, **__):
        raise pd.errors.ParserError(
            "Error tokenizing data. C error: Calling read(nbytes) on source failed. Try engine='python'."
        )

    monkeypatch.setattr(schema.pd, "read_csv", interrupted)
    with pytest.raises(KeyboardInterrupt):
        schema.parsed("run_id\n", "runs", Path("runs.csv"))
