"""The artefacts: what each wheel holds, and that a gateway's is enough for a gateway."""

import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
EDGE: Final = "stocktide_edge"
WHOLE: Final = "stocktide"
UNITS: Final = {
    EDGE: ["stocktide-broker@.service", "stocktide-edge.service"],
    WHOLE: ["stocktide-api.service", "stocktide-broker@.service", "stocktide-ingest@.service"],
}
NOT_AT_A_GATEWAY: Final = {"simulation", "firmware_sim", "testbed", "broker_config", "tests", "bench", "fuzz", "deploy"}
NOT_IN_A_PRODUCT: Final = {"testbed", "tests", "bench", "fuzz", "deploy"}


def project(path: str) -> Mapping[str, Any]:
    """The tables of a pyproject."""
    return tomllib.loads((ROOT / path / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Both wheels, built as `make wheels` builds them, by the name of their distribution."""
    out = tmp_path_factory.mktemp("wheels") / "dist"
    build = [sys.executable, str(ROOT / "deploy" / "wheels" / "build.py"), str(out)]
    subprocess.run(build, check=True, capture_output=True)
    return {wheel.name.partition("-")[0]: wheel for wheel in out.iterdir()}


@pytest.fixture(scope="module")
def gateway(wheels: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `stocktide` command of an environment with the gateway wheel and the libraries, and nothing else of ours."""
    home = tmp_path_factory.mktemp("gateway")
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--quiet", "--python", str(python), "install", "--no-index", "--no-deps"]
    subprocess.run([*pip, str(wheels[EDGE])], check=True, capture_output=True)
    # A .pth names the folder of the libraries; the .pth files in there, ours among them, are not followed.
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    (Path(site) / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "bin" / "stocktide"


def files(wheel: Path) -> list[str]:
    """The paths in a wheel, without its own metadata."""
    return [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]


def units(wheel: Path) -> list[str]:
    """The files beside the packages: units of systemd."""
    return sorted(name.rpartition("/")[2] for name in files(wheel) if ".data/" in name)


def packages(wheel: Path) -> set[str]:
    """The top-level names in a wheel."""
    return {name.partition("/")[0] for name in files(wheel) if ".data/" not in name}


def source_files(package: str) -> set[str]:
    """The files of a package in the source tree that belong into a wheel."""
    kinds = {".py", ".sql", ".yaml", ".gz", ".typed"}
    found = (path for path in (ROOT / package).rglob("*") if path.suffix in kinds or path.name == "py.typed")
    return {str(path.relative_to(ROOT)) for path in found}


@pytest.mark.slow
def test_a_gateways_wheel_holds_the_gateway_alone(wheels: Mapping[str, Path]) -> None:
    """Anyone who takes a gateway off its wall must find nothing of the cloud on its disk."""
    found = packages(wheels[EDGE])
    assert {"command_line", "edge_agent", "stocktide", "wire_protocol"} <= found
    assert found <= {"command_line", "edge_agent", "mqtt_client", "stocktide", "wire_protocol"}
    assert not {name for name in found if name.startswith("cloud_")} | (found & NOT_AT_A_GATEWAY)
    ours = {name for name in files(wheels[EDGE]) if name.startswith("stocktide/")}
    assert ours == {f"stocktide/{name}" for name in ("__init__.py", "__main__.py", "cli.py", "py.typed")}
    assert units(wheels[EDGE]) == UNITS[EDGE]


@pytest.mark.slow
def test_the_whole_product_holds_no_tests(wheels: Mapping[str, Path]) -> None:
    """What checks the product is no part of it."""
    assert not packages(wheels[WHOLE]) & NOT_IN_A_PRODUCT
    assert units(wheels[WHOLE]) == UNITS[WHOLE]
    listed = project(".")["tool"]["coverage"]["run"]["source"]
    assert packages(wheels[WHOLE]) == set(listed), "every package of ours, and none else"


@pytest.mark.slow
@pytest.mark.parametrize("name", [EDGE, WHOLE])
def test_nothing_of_a_package_is_left_out(wheels: Mapping[str, Path], name: str) -> None:
    """A statement, a migration or py.typed that is missing shows only where it is installed."""
    held = set(files(wheels[name]))
    for package in packages(wheels[name]) - {"stocktide"}:
        assert source_files(package) <= held, package
        assert f"{package}/py.typed" in held
    if name == WHOLE:
        assert source_files("stocktide") <= held


def test_a_gateway_needs_what_the_edge_extra_needs() -> None:
    """Two lists of the same libraries must not drift apart."""
    edge, whole = project("deploy/wheels/stocktide-edge")["project"], project(".")["project"]
    assert set(edge["dependencies"]) == {*whole["dependencies"], *whole["optional-dependencies"]["edge"]}
    for field in ("version", "requires-python", "license", "scripts"):
        assert edge[field] == whole[field], field


@pytest.mark.slow
def test_a_gateway_works_on_its_wheel_alone(gateway: Path, tmp_path: Path) -> None:
    """Everything that a technician needs is there, and only that is offered."""

    def run(*arguments: str) -> str:
        done = subprocess.run([gateway, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    ledger = ("--ledger", str(tmp_path / "ledger.db"))
    assert run("--version").strip() == project(".")["project"]["version"]
    assert "edge" in run("--help")
    assert "demo" not in run("--help")
    assert "enroll" in run("edge", "--help")
    run("edge", "init", "--gateway", "gw-1", *ledger)
    run("edge", "receive", "tea", "3", "A-01", *ledger)
    assert "tea" in run("edge", "stock", *ledger)
    run("edge", "ledger", "verify", *ledger)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "extra"), [("cloud", "cloud"), ("sim", "sim"), ("broker", "all"), ("schema", "all"), ("demo", "all")]
)
def test_what_a_gateway_does_not_have_says_what_to_install(gateway: Path, part: str, extra: str) -> None:
    """A traceback about a package that nobody has heard of helps nobody."""
    done = subprocess.run([gateway, part, "status"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"stocktide {part} is not in stocktide-edge" in done.stderr
    assert f"pip install 'stocktide[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr
