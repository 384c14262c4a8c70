"""What is built is complete: the wheel made from the source archive works in an empty environment, from anywhere."""

import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command; its output, or a failure that shows it."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COV_"))}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=clean | environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the sdist, as `python -m build` does by default, from a copy of what git tracks."""
    folder = tmp_path_factory.mktemp("build")
    source = folder / "source"
    source.mkdir()
    if (ROOT / ".git").exists():
        files = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
    else:
        files = [str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if ".venv" not in path.parts]
    for name in files:
        origin, target = ROOT / name, source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if origin.is_symlink():
            target.symlink_to(os.readlink(origin))
        elif origin.is_file():
            target.write_bytes(origin.read_bytes())
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", cwd=source)
    return next((folder / "dist").glob("*.whl"))


def test_packages_listed_are_the_packages_there() -> None:
    mapped = {"baselines": "tokenprune.baselines", "analysis": "tokenprune.analysis"}
    found = set()
    for top in ("tokenprune", "baselines", "analysis"):
        for marker in (ROOT / top).rglob("__init__.py"):
            parts = marker.parent.relative_to(ROOT).parts
            if parts[:2] in (("tokenprune", "baselines"), ("tokenprune", "analysis")):
                continue  # the links; their folders are walked on their own
            found.add(".".join([mapped.get(parts[0], parts[0]), *parts[1:]]))
    assert found == set(CONFIG["tool"]["setuptools"]["packages"])


def test_wheel_holds_the_mapped_packages_and_the_data(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for top, package in (("baselines", "tokenprune/baselines"), ("analysis", "tokenprune/analysis")):
        expected = {f"{package}/{path.relative_to(ROOT / top)}" for path in (ROOT / top).rglob("*.py")}
        assert expected <= names
    assert "tokenprune/py.typed" in names
    assert "tokenprune/bundled/model/model.safetensors" in names
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"tokenprune"}
    assert not [name for name in names if name.endswith((".pkl", ".pt", ".bin", ".pickle"))]


def test_wheel_works_in_an_empty_environment_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    # Dependencies come from the environment that runs this test; its own editable install does not travel along.
    inside = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    Path(inside, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = (
        "import importlib.util, tokenprune, tokenprune.baselines, tokenprune.analysis\n"
        "from tokenprune.bundled import MODEL_DIR\n"
        "print(tokenprune.__file__, tokenprune.baselines.__file__, tokenprune.analysis.__file__)\n"
        "print(tokenprune.parse('uniform_grid(keep=3)'), (MODEL_DIR / 'model.safetensors').is_file())\n"
        "print(importlib.util.find_spec('baselines'))\n"
    )
    where, what, plain = run(python, "-c", code, cwd=elsewhere).splitlines()
    assert all(path.startswith(inside) for path in where.split())
    assert what == "uniform_grid(keep=3) True"
    assert plain == "None"
    assert CONFIG["project"]["version"] in run(tmp_path / "env" / "bin" / "tokenprune", "--version", cwd=elsewhere)
