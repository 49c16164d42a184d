"""The wheel, installed into an environment of its own, works from any folder."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "sr_monitor": ROOT,
    "sr_monitor_lightning": ROOT / "integrations",
    "sr_monitor_olmo_core": ROOT / "integrations",
    "sr_monitor_transformers": ROOT / "integrations",
}


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command with no help from this folder's settings; return its output."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_is_complete_and_its_packages_and_command_are_found(tmp_path: Path) -> None:
    """In an environment that holds the wheel, and sees what it depends on."""
    build = ("build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT)
    run(sys.executable, "-m", *build, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    _check_content(wheel)
    run(sys.executable, "-m", "venv", "--without-pip", "environment", cwd=tmp_path)
    binaries = tmp_path / "environment" / "bin"
    install = ("install", "--quiet", "--no-deps", "--no-index", wheel)
    run(sys.executable, "-m", "pip", "--python", binaries / "python", *install, cwd=tmp_path)
    # NOTE: torch and the rest come from the environment of this test, by a path file. The path
    # files inside that environment, an editable install's among them, are not read this way.
    dependencies = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    site_packages = next(tmp_path.glob("environment/lib/python*/site-packages"))
    (site_packages / "dependencies.pth").write_text("\n".join(dependencies))

    names = [*PACKAGES, "sr_monitor.model", "sr_monitor.probes"]
    code = f"from importlib.util import find_spec; print(*(find_spec(n).origin for n in {names}))"
    origins = run(binaries / "python", "-c", code, cwd=tmp_path).split()
    assert [origin.startswith(str(site_packages)) for origin in origins] == [True] * len(names)
    assert {"measure", "demo"} <= set(run(binaries / "sr-monitor", "--help", cwd=tmp_path).split())


def _check_content(wheel: Path) -> None:
    """Find the packages and the licence, and nothing else."""
    with zipfile.ZipFile(wheel) as store:
        names = store.namelist()
    (metadata,) = {name.split("/")[0] for name in names} - PACKAGES.keys()
    assert metadata.endswith(".dist-info")
    assert f"{metadata}/licenses/LICENSE" in names
    in_tree = {
        path.relative_to(source).as_posix()
        for package, source in PACKAGES.items()
        for path in (source / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {f"{package}/py.typed" for package in PACKAGES} <= in_tree
    assert {name for name in names if not name.startswith(metadata)} == in_tree
