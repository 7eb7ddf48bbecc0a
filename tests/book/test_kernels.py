"""The kernels of the chapters: each as fresh as one that is started anew, and gone with its notebook."""

import os
import time

import nbformat
import papermill
import pytest
from papermill.exceptions import PapermillExecutionError

from kernels import ForkedKernelManager


@pytest.fixture
def run(tmp_path):
    """Execute cells, and return what each has printed, the kinds of its other outputs among it."""

    def outputs(*sources, **options):
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        notebook = tmp_path / "notebook.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=cells), notebook)
        options = {"kernel_name": "python3", "progress_bar": False, "cwd": tmp_path, **options}
        done = papermill.execute_notebook(notebook, None, kernel_manager_class=ForkedKernelManager, **options)
        return [[output.get("text") or sorted(output.data) for output in cell.outputs] for cell in done.cells]

    return outputs


def gone(pid):
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def test_a_kernel_knows_nothing_of_the_one_before_it_and_ends_with_its_notebook(run):
    tell = "import os, torch; print(os.getpid(), 'left' in globals(), hasattr(torch, 'left'))"
    (first,), _ = run(tell, "left = torch.left = 1; torch.manual_seed(3);")
    ((second,),) = run(tell)
    pids = [int(told.split()[0]) for told in (first, second)]
    assert len({os.getpid(), *pids}) == 3
    assert [told.split()[1:] for told in (first, second)] == [["False", "False"]] * 2
    assert all(map(gone, pids))


def test_a_kernel_has_the_folder_and_the_environment_of_now(run, tmp_path, monkeypatch):
    monkeypatch.setenv("WELLCOND_OF_NOW", "1")
    ((first,),) = run("import os; print(os.getcwd(), os.environ.get('WELLCOND_OF_NOW'))")
    monkeypatch.delenv("WELLCOND_OF_NOW")
    ((second,),) = run("import os; print(os.getcwd(), os.environ.get('WELLCOND_OF_NOW'))")
    assert [first, second] == [f"{tmp_path} 1\n", f"{tmp_path} None\n"]


def test_figures_come_into_the_notebook_whatever_the_backend_outside(run, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    assert run("import matplotlib.pyplot as plt\nplt.plot([1, 2]);") == [[["image/png", "text/plain"]]]


def test_a_kernel_that_dies_or_takes_too_long_is_an_error(run):
    with pytest.raises(Exception, match="Kernel died"):
        run("import os; os._exit(1)")
    with pytest.raises(Exception, match="timed out"):
        run("import time; time.sleep(60)", execution_timeout=1)
    with pytest.raises(PapermillExecutionError, match="ZeroDivisionError"):
        run("1 / 0")


def test_what_a_kernel_has_started_is_ended_with_a_kernel_that_is_killed(run, tmp_path):
    started = "import subprocess; child = subprocess.Popen(['sleep', '60']); print(child.pid, flush=True)\n"
    with pytest.raises(Exception, match="timed out"):
        run(started + "open('pid', 'w').write(str(child.pid))\nimport time; time.sleep(60)", execution_timeout=3)
    assert gone(int((tmp_path / "pid").read_text()))
