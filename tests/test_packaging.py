"""The wheel, installed into an environment of its own, works from any folder."""

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "sr_monitor": ROOT,
    "sr_monitor_lightning": ROOT / "integrations",
    "sr_monitor_transformers": ROOT / "integrations",
}


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command with no help from this folder's settings; its output."""
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this tree."""
    out = tmp_path_factory.mktemp("wheel")
    build = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT)
    run(*build, cwd=out)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that holds the wheel, and sees what it depends on."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    install = ("install", "--quiet", "--no-deps", "--no-index", wheel)
    run(sys.executable, "-m", "pip", "--python", python, *install, cwd=folder)
    site_packages = next(folder.glob("lib/python*/site-packages"))
    # NOTE: torch and the rest come from the environment of this test, by a path file. The path
    # files inside that environment, an editable install's among them, are not read this way.
    dependencies = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site_packages / "dependencies.pth").write_text("\n".join(dependencies))
    return folder


@pytest.mark.parametrize("package", PACKAGES)
def test_package_is_imported_from_the_wheel(
    package: str, environment: Path, tmp_path: Path
) -> None:
    code = f"import {package}; print({package}.__file__)"
    where = Path(run(environment / "bin" / "python", "-c", code, cwd=tmp_path).strip())
    assert where.is_relative_to(environment)
    assert (where.parent / "py.typed").is_file()


def test_public_names_come_from_the_wheel(environment: Path, tmp_path: Path) -> None:
    code = "from sr_monitor import *; print(measure_paths.__code__.co_filename)"
    where = Path(run(environment / "bin" / "python", "-c", code, cwd=tmp_path).strip())
    assert where.is_relative_to(environment)


def test_command_runs(environment: Path, tmp_path: Path) -> None:
    printed = run(environment / "bin" / "sr-monitor", "--help", cwd=tmp_path)
    assert "measure" in printed
    assert "demo" in printed


def test_wheel_holds_the_three_packages_and_the_licence_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as store:
        names = store.namelist()
    folders = {name.split("/")[0] for name in names}
    (metadata,) = folders - PACKAGES.keys()
    assert metadata.endswith(".dist-info")
    assert f"{metadata}/licenses/LICENSE" in names
    in_tree = {
        path.relative_to(source).as_posix()
        for package, source in PACKAGES.items()
        for path in (source / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {name for name in names if not name.startswith(metadata)} == in_tree
