"""Rules that the whole repository keeps: what is imported where, what notebooks look like, what is committed."""

import ast
import base64
import functools
import importlib.metadata
import json
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ("build_tokenizer", "train", "inference", "testing_modules", "model_evaluation")
NOT_OURS = re.compile(r"(^|/)(\.(?!ci/|git\w+$)|executed/|checkpoint/|__pycache__/)")  # what stays on this machine
MACHINE_PATH = re.compile(r"(?<![\w/.])(?:/(?:home|root|tmp|work|Users|mnt|opt)/|[A-Z]:\\\\?Users)\w")


@functools.cache
def committed() -> list[Path]:
    """The files that git holds, or would take in: what a clone gets. Without git, what is not plainly local."""
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                            cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0:
        found = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        found = [path for path in ROOT.rglob("*") if not NOT_OURS.search(path.relative_to(ROOT).as_posix())]
    return sorted(path for path in set(found) if path.is_file())


def python_files(tests: bool) -> list[Path]:
    """The .py files of the tests, or those of everything else."""
    return [p for p in committed() if p.suffix == ".py" and (p.relative_to(ROOT).parts[0] == "tests") == tests]


def notebook_file(name: str) -> Path:
    path = ROOT / f"{name}.ipynb"
    if not path.exists():
        pytest.skip("reported by test_the_five_notebooks_are_there")
    return path


def cells_of(name: str, kind: str) -> list[dict]:
    notebook = json.loads(notebook_file(name).read_text(encoding="utf-8"))
    return [{**cell, "source": "".join(cell["source"])} for cell in notebook["cells"] if cell["cell_type"] == kind]


def outputs_of(name: str) -> list[dict]:
    return [output for cell in cells_of(name, "code") for output in cell["outputs"]]


def python_of(cell: dict) -> ast.Module:
    """The cell without its magic lines, parsed."""
    return ast.parse(re.sub(r"(?m)^\s*[%!].*$", "", cell["source"]))


# ------------------------------------------------------------------------------------------------------ imports


def modules_after(statement: str) -> set[str]:
    """Top-level names that are loaded in a fresh interpreter after `statement`."""
    code = f"import sys; {statement}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return set(ran.stdout.split())


@pytest.mark.parametrize(("statement", "unwanted"), [
    ("import config", {"torch", "numpy", "model"}),
    ("import model", {"pandas", "matplotlib", "datasets", "IPython", "transformers", "sentencepiece", "nbformat"}),
    ("import tools", {"model", "pandas", "matplotlib", "datasets", "IPython", "transformers"}),
    ("import train, inference", {"pandas", "matplotlib", "datasets", "IPython", "transformers"}),
])
def test_imports_stay_light(statement, unwanted):
    assert not unwanted & modules_after(statement)


def test_core_never_imports_what_stands_on_it():
    """config <- model <- train and inference; nothing but tests imports the benchmarks."""
    above = {"config": {"model", "train", "inference", "tools", "lab"}, "tokenizer": {"model", "train", "inference"},
             "model": {"train", "inference"}}
    for name, unwanted in above.items():
        assert not unwanted & {module for module, _ in imported_modules(ROOT / f"{name}.py")}, name
    for path in python_files(tests=False):
        if path.parent.name != "benchmarks":
            assert "benchmarks" not in {module for module, _ in imported_modules(path)}, path.name


def imported_modules(path: Path) -> list[tuple[str, int]]:
    """Top-level name and line of every import in a file, those inside functions too."""
    return imports_in(ast.parse(path.read_text(encoding="utf-8")))


def imports_in(tree: ast.AST) -> list[tuple[str, int]]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name.partition(".")[0], node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.append((node.module.partition(".")[0], node.lineno))
    return found


def installed_by(*files: str) -> set[str]:
    """Names of all packages that the requirement files bring, directly or not, on this machine."""
    lines = [line.partition("#")[0].strip() for file in files for line in (ROOT / file).read_text().splitlines()]
    waiting, seen = [Requirement(line) for line in lines if line], set()
    while waiting:
        requirement = waiting.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        waiting += _requirements_of(requirement)
    return {name for name, _ in seen}


def _requirements_of(requirement: Requirement) -> list[Requirement]:
    try:
        listed = importlib.metadata.requires(requirement.name) or []
    except importlib.metadata.PackageNotFoundError:  # an optional one that this system does not need
        return []
    wanted = [Requirement(text) for text in listed]
    extras = ("", *requirement.extras)
    return [one for one in wanted if not one.marker or any(one.marker.evaluate({"extra": extra}) for extra in extras)]


def offered_modules(path: Path) -> set[str]:
    """What a file imports under `except ImportError`: used where it is there, else asked for with a clear message."""
    tries = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Try)
             and any(handler.type and "ImportError" in ast.unparse(handler.type) for handler in node.handlers)]
    return {name for node in tries for statement in node.body for name, _ in imports_in(statement)}


@pytest.mark.parametrize(("tests", "files"), [(False, ["requirements.txt"]),
                                              (True, ["requirements.txt", "requirements-test.txt"])])
def test_everything_imported_is_required(tests, files):
    """Nothing that the code imports comes from a package somebody installed by hand."""
    brings, packages = installed_by(*files), importlib.metadata.packages_distributions()
    top_level = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in python_files(False)}
    missing = []
    for path in python_files(tests):
        known = top_level | offered_modules(path) | sys.stdlib_module_names
        folder = path.relative_to(ROOT).parts[0]
        if folder in ("tests", "benchmarks"):  # run as scripts, they import what lies beside them
            known |= {beside.stem for beside in (ROOT / folder).iterdir()}
        if folder == "benchmarks":  # what is compared is installed only by those who compare
            listed = re.findall(r"(?m)^[\w-]+", (ROOT / "benchmarks/requirements.txt").read_text())
            known |= {name.replace("-", "_") for name in listed}
        missing += [f"{path.relative_to(ROOT)}:{line} {module}" for module, line in imported_modules(path)
                    if module not in known and not brings & set(map(canonicalize_name, packages.get(module, ())))]
    assert not missing


def test_torch_is_pinned():
    assert re.search(r"(?m)^torch==\d+\.\d+\.\d+$", (ROOT / "requirements.txt").read_text())


def test_modules_are_found_from_any_folder(tmp_path):
    """A notebook or script started elsewhere works in the environment that `make` sets up."""
    if not Path(sys.prefix, "requirements-installed").exists():
        pytest.skip("this environment was not set up by `make`")
    code = "import config, tools, lab.files; print(lab.files.ROOT)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert Path(ran.stdout.strip()) == Path(sys.prefix).parent


# ------------------------------------------------------------------------------------------------------ code and files


def test_no_pickle():
    """Loading a model never executes what its folder holds, so nothing that unpickles is used at all."""
    unwanted = {"pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}
    found = [f"{path.relative_to(ROOT)}:{line} {name}" for path in python_files(tests=False)
             for name, line in imported_modules(path) if name in unwanted]
    for path in python_files(tests=False):
        found += [f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)}"
                  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if _unpickles(node)]
    assert not found


def _unpickles(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute):
        return ast.unparse(node) in ("torch.load", "torch.save", "pd.read_pickle")
    return isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False"


def test_model_is_one_readable_chapter():
    assert len((ROOT / "model.py").read_text(encoding="utf-8").splitlines()) <= 800


def test_committed_files_are_small_and_named_for_every_system():
    names = [path.relative_to(ROOT).as_posix() for path in committed()]
    assert not [name for name, path in zip(names, committed(), strict=True) if path.stat().st_size >= 8_000_000]
    assert not [name for name in names if re.search(r'[<>:"\\|?*]|[. ](/|$)', name)]
    assert len({name.lower() for name in names}) == len(names)


def test_no_machine_paths():
    found = []
    for path in committed():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # weights, tokenizers, pictures
            continue
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in MACHINE_PATH.finditer(text)]
    assert not found


# ------------------------------------------------------------------------------------------------------ README


def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_commands_of_the_readme_exist():
    targets = set(re.findall(r"(?m)^([a-z]+):", (ROOT / "Makefile").read_text()))
    assert {"train", "test", "lab", "notebooks", "lint"} <= targets
    named = set(re.findall(r"(?m)(?:^|`|\$ )make ([a-z]+)", readme()))
    assert {"train", "test"} <= named <= targets
    scripts = set(re.findall(r"python3? ([\w/]+\.py)", readme()))
    modules = set(re.findall(r"python3? -m ((?:lab|benchmarks)[\w.]*)", readme()))
    assert not [name for name in scripts if not (ROOT / name).exists()]
    paths = {name: ROOT / name.replace(".", "/") for name in modules}  # of a module or, with __main__.py, a package
    assert not [n for n, p in paths.items() if not (p.with_suffix(".py").exists() or (p / "__main__.py").exists())]


def test_links_of_the_readme_lead_somewhere():
    links = re.findall(r"\]\(([^)#\s]+)", readme()) + re.findall(r'(?:src|href)="([^"#]+)"', readme())
    local = [link for link in links if not link.startswith(("http://", "https://", "mailto:"))]
    assert not [link for link in local if not (ROOT / link).exists()]


# ------------------------------------------------------------------------------------------------------ notebooks


def test_the_five_notebooks_are_there():
    assert not [name for name in NOTEBOOKS if not (ROOT / f"{name}.ipynb").exists()]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_is_committed_executed(name):
    """From top to bottom in one go, without errors, and for any machine's Python 3."""
    cells = cells_of(name, "code")
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for output in outputs_of(name) if output["output_type"] == "error"]
    assert len([cell for cell in cells if cell["outputs"]]) >= len(cells) / 2, "most cells end in something to look at"
    metadata = json.loads(notebook_file(name).read_text(encoding="utf-8"))["metadata"]
    assert metadata["kernelspec"]["name"] == "python3"
    assert "widgets" not in metadata


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_opens_with_what_to_expect(name):
    first = cells_of(name, "markdown")[0]["source"]
    assert first.startswith("# ")
    assert "CPU" in first, "say how long it takes on a CPU"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_cells_are_short_and_define_nothing(name):
    """But for the worked example, a block under `@layer`."""
    for cell in cells_of(name, "code"):
        defined = [node for node in python_of(cell).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        blocks = [node for node in defined if is_block(node)]
        assert defined == blocks, cell["source"]
        lines = [line for line in cell["source"].splitlines() if line.strip()]
        assert 1 <= len(lines) <= (30 if blocks else 15), cell["source"]
        assert not re.search(r"\bsys\.path\b", cell["source"]), cell["source"]


def is_block(node: ast.FunctionDef | ast.ClassDef) -> bool:
    return any(ast.unparse(decorator).startswith("layer(") for decorator in node.decorator_list)


def texts_of(output: dict) -> list[str]:
    texts = [output.get("text", ""), *(v for kind, v in output.get("data", {}).items() if kind.startswith("text/"))]
    return ["".join(text) for text in texts]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_outputs_are_short_and_clean(name):
    for text in (text for output in outputs_of(name) for text in texts_of(output)):
        assert len(text) <= (30_000 if "<pre" in text else 8000), text[:200]  # a trace that folds holds more
        assert not MACHINE_PATH.search(text), text
        assert not re.search(r"\d%\|", text), f"what a progress bar left behind: {text}"
        assert "Warning:" not in text, text


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_pictures_are_png_of_sensible_size(name):
    assert notebook_file(name).stat().st_size < 1_500_000
    kinds = {kind for output in outputs_of(name) for kind in output.get("data", {})}
    assert not {kind for kind in kinds if kind.startswith(("image/", "application/"))} - {"image/png"}
    for output in outputs_of(name):
        picture = base64.b64decode("".join(output.get("data", {}).get("image/png", "")))
        if picture:
            width, height = struct.unpack(">II", picture[16:24])
            assert 100 <= width <= 2000 and 100 <= height <= 3000 and len(picture) <= 400_000, (width, height)
