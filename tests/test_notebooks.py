"""Every notebook from top to bottom in its quick form, and the runner behind `make train` and `make notebooks`."""

import base64
import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from test_repository import NOTEBOOKS, cells_of, committed, texts_of

from lab import compare_models, notebooks

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 120  # a minute is what FAST=1 promises; other tests run at the same time
QUICK = {"FAST": "1", "DATASET": "storyworld", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A copy of what git holds: what a notebook writes stays in it, and what it reads must have been committed."""
    for path in committed():
        copy = tmp_path / "checkout" / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    return tmp_path / "checkout"


def contents(folder: Path) -> dict[str, str]:
    """Every file's digest, but for compiled modules."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def run_quickly(path: Path, **options) -> nbformat.NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    started = time.monotonic()
    notebooks.execute(notebook, path.parent, timeout=SECONDS, **options)
    assert time.monotonic() - started < SECONDS
    return notebook


@pytest.mark.notebook
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_runs(name, checkout, tmp_path):
    """Offline, without widgets, and without touching anything that is committed."""
    widgets = tmp_path / "missing" / "ipywidgets.py"
    widgets.parent.mkdir()
    widgets.write_text("raise ImportError('no widgets here')")
    before = contents(checkout)
    notebook = run_quickly(checkout / f"{name}.ipynb", env={**QUICK, "PYTHONPATH": str(widgets.parent)})
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    after = contents(checkout)
    assert {file: after.get(file) for file in before} == before
    assert not not_ignored(set(after) - set(before))


def not_ignored(files: set[str]) -> list[str]:
    """Which of these, new in a checkout, `git status` would show."""
    if not files or not (ROOT / ".git").exists():
        return []
    ran = subprocess.run(["git", "check-ignore", "--no-index", "--stdin"], cwd=ROOT, input="\n".join(files),
                         capture_output=True, text=True)
    return sorted(files - set(ran.stdout.splitlines()))


@pytest.mark.notebook
def test_notebook_runs_from_another_folder(checkout, tmp_path):
    """The modules and the saved models are found, whatever the working directory."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run_quickly(checkout / "inference.ipynb", cwd=elsewhere, env=QUICK)
    assert not contents(elsewhere)


@pytest.mark.notebook
def test_the_report_shows_what_the_folders_keep(monkeypatch):
    """model_evaluation.ipynb was executed after the last evaluation of the models that lie beside it."""
    missing = "not kept: python -m lab.evaluation NAME --text FILE --save"
    monkeypatch.setattr(compare_models, "predictions_of", lambda *a, **k: pytest.fail(missing))
    cells = cells_of("model_evaluation", "code")
    settings = {"os": os}
    exec(next(cell["source"] for cell in cells if "MODELS = " in cell["source"]), settings)
    shown = "\n".join(text for cell in cells for output in cell["outputs"] for text in texts_of(output))
    for pair in compare_models.compare(settings["MODELS"], settings["TEXT"])["pairs"]:
        assert pair["sentence"] in shown


# ------------------------------------------------------------------------------------------------------ the runner


def write_notebook(path: Path, *cells: str) -> Path:
    nbformat.write(new_notebook(cells=[new_markdown_cell("# A title\n\nText."), *map(new_code_cell, cells)]), path)
    return path


@pytest.fixture
def start():
    """`start(notebook, *options)`: the runner in a process of its own, which does not outlive the test."""
    processes = []

    def run(path: Path, *options: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "lab.notebooks", str(path), *options]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        processes.append(subprocess.Popen(command, cwd=ROOT, **pipes))
        return processes[-1]

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def test_what_a_cell_prints_is_shown_at_once(start, tmp_path):
    path = write_notebook(tmp_path / "slow.ipynb", "import time\nprint('early')\ntime.sleep(300)")
    process = start(path)
    for line in process.stdout:
        if line.strip() == "early":
            break
    else:
        pytest.fail("the process ended without the line")
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)


def test_text_is_shown_and_pictures_are_not(tmp_path):
    path = write_notebook(
        tmp_path / "shows.ipynb",
        "from IPython.display import Markdown, display\nimport matplotlib.pyplot as plt\nprint('printed')",
        "plt.plot([1, 2])\nplt.show()\ndisplay(Markdown('**bold**'))\n'last value'",
    )
    out, notebook = io.StringIO(), nbformat.read(path, as_version=4)
    notebook.cells.append(new_markdown_cell("## Nothing is printed under this one"))
    notebooks.execute(notebook, tmp_path, out=out)
    assert out.getvalue().split("\n") == ["", "A title", "printed", "**bold**", "'last value'", ""]
    assert "image/png" in notebook.cells[2].outputs[0].data


def test_pictures_are_small_and_look_the_same(tmp_path):
    from PIL import Image, ImageChops

    plot = "import matplotlib.pyplot as plt\nplt.imshow([[i * j for i in range(99)] for j in range(99)])\nplt.show()"
    notebook = nbformat.read(write_notebook(tmp_path / "plot.ipynb", plot), as_version=4)
    png = base64.b64encode(picture_of(400, 300)).decode()
    small = notebooks.with_few_colours(png)
    assert len(small) < 0.7 * len(png)
    before, after = (Image.open(io.BytesIO(base64.b64decode(x))).convert("RGB") for x in (png, small))
    assert max(high for _, high in ImageChops.difference(before, after).getextrema()) < 40
    assert notebooks.with_few_colours(small) == small
    notebooks.execute(notebook, tmp_path)
    assert Image.open(io.BytesIO(base64.b64decode(notebook.cells[1].outputs[-1].data["image/png"]))).mode == "P"


def picture_of(width: int, height: int) -> bytes:
    """A PNG of a plot with a line, text and all shades of a colour map."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    left, right = figure.subplots(1, 2)
    left.plot([0, 3, 1, 2])
    right.imshow([[i + j for i in range(64)] for j in range(64)])
    file = io.BytesIO()
    figure.savefig(file, format="png", facecolor="white")
    return file.getvalue()


def test_a_status_line_is_redrawn():
    status = {"data": {"text/plain": "step 1"}, "transient": {"display_id": "a"}}
    later = {"data": {"text/plain": "step 2"}, "transient": {"display_id": "a"}}
    picture = {"data": {"text/plain": "<Figure>", "image/png": ""}, "transient": {"display_id": "b"}}
    out = io.StringIO()
    screen = notebooks._Screen(out)
    screen.is_terminal = True
    for kind, content in [("display_data", status), ("update_display_data", picture), ("update_display_data", later)]:
        screen.message(kind, content)
    screen.message("stream", {"text": "done\n"})
    assert out.getvalue() == "\r\x1b[Kstep 1\r\x1b[Kstep 2\ndone\n"


def test_a_log_gets_few_of_many_redrawn_lines():
    out = io.StringIO()
    screen = notebooks._Screen(out)
    for step in range(1000):
        screen.message("stream", {"text": f"\r\x1b[1mstep {step}\x1b[0m"})
    screen.message("stream", {"text": "\ndone\n"})
    assert out.getvalue() == "step 0\nstep 999\ndone\n"


def test_a_failing_cell_is_shown_and_nothing_is_saved(start, tmp_path):
    path = write_notebook(tmp_path / "fails.ipynb", "x = 1", "y = x / 0", "print('not reached')")
    before = path.read_bytes()
    process = start(path, "--in-place")
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "fails.ipynb failed" in text and "y = x / 0" in text and "ZeroDivisionError: division by zero" in text
    assert "not reached" not in text and "\x1b" not in text
    assert path.read_bytes() == before


def test_a_missing_notebook_and_a_dead_kernel_are_told(start, tmp_path):
    process = start(tmp_path / "nowhere.ipynb")
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 2 and "no such notebook" in text and "nowhere.ipynb" in text
    process = start(write_notebook(tmp_path / "dies.ipynb", "import os\nos._exit(1)"))
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and "dies.ipynb failed: its kernel died" in text


def test_saving_twice_changes_nothing(tmp_path):
    path = write_notebook(tmp_path / "same.ipynb", "print(1)", "2")
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata = {"kernelspec": {"name": "mine", "display_name": "Mine", "language": "python"}, "widgets": {}}
    notebook.cells[1].metadata = {"tags": ["keep"], "execution": {"start": "now"}, "scrolled": True}
    notebooks.save(notebook, path)
    assert notebooks.run(path, in_place=True) == 0
    first = path.read_bytes()
    saved = nbformat.read(path, as_version=4)
    assert saved.metadata.kernelspec.name == "python3" and set(saved.metadata) == {"kernelspec", "language_info"}
    assert [cell.metadata for cell in saved.cells] == [{}, {"tags": ["keep"]}, {}]
    assert [cell.execution_count for cell in saved.cells[1:]] == [1, 2]
    assert notebooks.run(path, in_place=True) == 0
    assert path.read_bytes() == first


def test_a_copy_leaves_the_notebook_alone(tmp_path):
    path = write_notebook(tmp_path / "one.ipynb", "print('hello')")
    before = path.read_bytes()
    assert notebooks.run(path, output_dir=tmp_path / "executed") == 0
    assert path.read_bytes() == before
    assert nbformat.read(tmp_path / "executed" / "one.ipynb", as_version=4).cells[1].outputs[0].text == "hello\n"


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send Ctrl-C to one process")
def test_ctrl_c_interrupts_the_cell_and_starts_no_other(start, tmp_path):
    path = write_notebook(
        tmp_path / "long.ipynb",
        "import time\n"
        "try:\n    print('started', flush=True)\n    time.sleep(300)\nexcept KeyboardInterrupt:\n    print('saved')",
        "print('not reached')",
    )
    process = start(path, "--output-dir", str(tmp_path / "executed"))
    while "started" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "saved" in text and "long.ipynb was interrupted" in text and "not reached" not in text
    assert "Traceback" not in text


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send Ctrl-C to one process")
def test_a_second_ctrl_c_ends_a_deaf_kernel(start, tmp_path):
    deaf = "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('deaf', flush=True)"
    process = start(write_notebook(tmp_path / "deaf.ipynb", f"{deaf}\ntime.sleep(300)"))
    while "deaf" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130


def test_errors_reach_the_caller_with_the_outputs_so_far(tmp_path):
    notebook = nbformat.read(write_notebook(tmp_path / "n.ipynb", "print('before')", "1 / 0"), as_version=4)
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        notebooks.execute(notebook, tmp_path)
    assert notebook.cells[1].outputs[0].text == "before\n"
