"""Build the wheels: one source tree, an artefact for each place it is installed at.

Each is built from a folder of its own that holds copies of just its parts, so nothing of an earlier build and nothing
that lies about in the source tree can get in. setuptools is fetched once; nothing else needs a network.

    python deploy/wheels/build.py [FOLDER]
"""

import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
HERE: Final = Path(__file__).resolve().parent
NOT_COPIED: Final = shutil.ignore_patterns("__pycache__", "*.pyc", "*.egg-info")


def stage(project: Path, parts: Iterable[str], folder: Path) -> Path:
    """Copy a project and its parts of the source tree into a folder of its own."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy2(project / name, folder / name)
    for part in parts:
        source, target = ROOT / part, folder / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=NOT_COPIED)
        elif source.exists():
            shutil.copy2(source, target)
    return folder


def parts_of(project: Path) -> list[str]:
    """What a project's wheel is made of: the gateway's lists it, the whole product's is every package it includes."""
    settings = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    if "stocktide" in settings:
        return list(settings["stocktide"]["copied"])
    packages = settings["setuptools"]["packages"]["find"]["include"]
    files = settings["setuptools"]["data-files"]["share/stocktide"]
    return ["LICENSE", *files, *(name.removesuffix("*") for name in packages)]


def build(out: Path, work: Path) -> list[Path]:
    """Build every wheel into a folder, which afterwards holds these alone."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for name, project in {"stocktide-edge": HERE / "stocktide-edge", "stocktide": ROOT}.items():
        folder = stage(project, parts_of(project), work / name)
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "wheel", "--no-deps"]
        subprocess.run([*pip, "--wheel-dir", str(out), str(folder)], check=True)
    return sorted(out.glob("*.whl"))


def main() -> None:
    """Build into `build/dist`, or into the folder named."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "dist"
    for wheel in build(out, out.parent / "wheels"):
        print(f"{wheel.relative_to(Path.cwd()) if wheel.is_relative_to(Path.cwd()) else wheel}")


if __name__ == "__main__":
    main()
