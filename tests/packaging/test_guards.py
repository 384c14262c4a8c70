"""The guards of the layout: one import name, one-way imports, links that stay links."""

import ast
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINKED = ("baselines", "analysis")


def test_the_links_are_relative_links() -> None:
    for name in LINKED:
        link = ROOT / "tokenprune" / name
        assert link.is_symlink()
        assert str(link.readlink()) == f"../{name}"


@pytest.mark.parametrize("line", ["import baselines\n", "from analysis import x\n", "import baselines.uniform\n"])
def test_ruff_bans_the_plain_names(line: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--select", "TID251", "--stdin-filename", "tokenprune/x.py", "-"],
        cwd=ROOT,
        input=line,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "TID251" in done.stdout


def _lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    code = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    return subprocess.run(
        [sys.executable, "-c", code, "--no-cache"], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("tokenprune/core/tokens.py", "from tokenprune.baselines import Random\n"),
        ("baselines/uniform.py", "import tokenprune.cli.main\n"),
        ("tokenprune/core/strategy.py", "import transformers\n"),
    ],
)
def test_import_linter_catches_an_import_upwards(tmp_path: Path, module: str, line: str) -> None:
    ignore = shutil.ignore_patterns("__pycache__", "*.safetensors")
    for name in ("tokenprune", *LINKED):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    assert _lint_imports(tmp_path).returncode == 0
    target = tmp_path / module
    target.write_text(target.read_text() + line)
    done = _lint_imports(tmp_path)
    assert done.returncode != 0
    assert "BROKEN" in done.stdout


def test_mapped_packages_import_absolutely_and_shadow_nothing() -> None:
    for top in LINKED:
        for path in (ROOT / top).rglob("*.py"):
            assert path.stem not in sys.stdlib_module_names, f"{path} would shadow the standard library"
            for node in ast.walk(ast.parse(path.read_text())):
                assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}:{node.lineno} imports relatively"


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, tokenprune\n"
        "tokenprune.strategies()\n"
        "heavy = {'transformers', 'sklearn', 'matplotlib', 'pyarrow', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_coverage_sees_the_real_folders() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert config["tool"]["coverage"]["run"]["source"] == ["tokenprune", *LINKED]


def test_no_code_loads_pickles() -> None:
    for top in ("tokenprune", *LINKED):
        for path in (ROOT / top).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                    assert not {"pickle", "dill", "joblib", "shelve"} & {name.split(".")[0] for name in names}, path
                if isinstance(node, ast.keyword):
                    allowed = not (isinstance(node.value, ast.Constant) and node.value.value is True)
                    assert node.arg not in ("allow_pickle", "trust_remote_code") or allowed, f"{path}:{node.lineno}"
                if isinstance(node, ast.Attribute) and node.attr == "load" and isinstance(node.value, ast.Name):
                    assert node.value.id not in ("torch",), f"{path}:{node.lineno} uses torch.load; use safetensors"
