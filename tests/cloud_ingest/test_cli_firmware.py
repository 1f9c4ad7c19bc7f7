"""`stocktide cloud firmware` and jobs of it, as a person and a script use them."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cloud_cli.app import app

pytestmark = pytest.mark.services
Run = Callable[..., Result]


@pytest.fixture
def run(database_url: str, tmp_path: Path) -> Run:
    """Run a command against the test's database, in which a tenant with a gateway is; keys and images are at hand."""

    def invoke(*words: str) -> Result:
        return CliRunner().invoke(app, list(words), env={"STOCKTIDE_DATABASE_URL": database_url})

    for words in ("tenant add acme", "site add berlin -t acme", "gateway add gw-cli -t acme -s berlin"):
        assert invoke(*words.split()).exit_code == 0
    assert invoke("firmware", "keygen", str(tmp_path / "key.pem"), str(tmp_path / "key.pub")).exit_code == 0
    for version in ("1.0", "1.1", "1.2"):
        (tmp_path / version).write_bytes(f"image {version}".encode())
    return invoke


def add(run: Run, folder: Path, version: str, *more: str, image: str | None = None) -> Result:
    """Add a version with the key at hand."""
    words = ["-t", "acme", "--model", "probe-x", "--version", version, "--sign-key", str(folder / "key.pem")]
    return run("firmware", "add", str(folder / (image or version)), *words, *more)


def answer(result: Result) -> Any:
    """The JSON that a command printed."""
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_new_version_brings_the_way_back_to_the_one_before(run: Run, tmp_path: Path) -> None:
    """A job that fails at night goes back without anybody who has the key."""
    assert len(answer(add(run, tmp_path, "1.0", "--json"))) == 1
    new, back = answer(add(run, tmp_path, "1.1", "--json"))
    assert (back["version"], back["replaces"], back["release"]) == ("1.0", "1.1", new["release"] + 1)
    # After a way back the version before is still the last that was new.
    _, second = answer(add(run, tmp_path, "1.2", "--json"))
    assert (second["version"], second["replaces"]) == ("1.1", "1.2")
    # Signing once more is a new release of the same version, with its own way back.
    again, _ = answer(add(run, tmp_path, "1.2", "--json"))
    assert again["release"] > second["release"]
    listed = answer(run("firmware", "list", "--tenant", "acme", "--json"))
    assert [row["version"] for row in listed] == ["1.1", "1.2", "1.1", "1.2", "1.0", "1.1", "1.0"]
    assert "Its rollback release is" in add(run, tmp_path, "1.2").stdout


def test_a_signature_from_a_safe_is_checked_here_before_any_device_sees_it(run: Run, tmp_path: Path) -> None:
    """A mistake with a key that is kept elsewhere must not be found out by the first wave."""

    def sign(version: str, number: str) -> None:
        options = ["--model", "probe-x", "--version", version, "--release", number]
        printed = run("firmware", "manifest", str(tmp_path / version), *options)
        (tmp_path / "manifest").write_bytes(printed.stdout_bytes)
        subprocess.run(
            ["openssl", "pkeyutl", "-sign", "-rawin", "-inkey", "key.pem", "-in", "manifest", "-out", "signature"],
            check=True,
            cwd=tmp_path,
        )

    def add_signed(version: str, number: str, key: str = "key.pub") -> Result:
        options = ["-t", "acme", "--model", "probe-x", "--version", version, "--release", number]
        files = ["--signature", str(tmp_path / "signature"), "--public-key", str(tmp_path / key)]
        return run("firmware", "add", str(tmp_path / version), *options, *files)

    sign("1.0", "5")
    assert add_signed("1.1", "5").exit_code == 2
    assert add_signed("1.0", "6").exit_code == 2
    assert add_signed("1.0", "5", "key.pem").exit_code == 2
    assert add_signed("1.0", "5").exit_code == 0
    old = add_signed("1.0", "5")
    assert (old.exit_code, "not greater than 5" in old.stderr) == (2, True)


def test_mistakes_get_a_sentence_and_exit_code_2(run: Run, tmp_path: Path) -> None:
    """Of everything that a person can mistype, nothing may be half done or end in a traceback."""
    key = str(tmp_path / "key.pem")
    image = ["firmware", "add", str(tmp_path / "1.0"), "-t", "acme", "--model", "probe-x", "--version", "1.0"]
    for words, said in (
        (image, "Who signs it?"),
        ([*image, "--sign-key", key, "--signature", key], "Who signs it?"),
        ([*image, "--signature", key], "Who signs it?"),
        ([*image, "--signature", key, "--public-key", key], "Which number was signed?"),
        ([*image, "--sign-key", str(tmp_path / "nothing")], "cannot be read"),
        (["firmware", "add", str(tmp_path / "nothing"), *image[3:], "--sign-key", key], "cannot be read"),
        ([*image[:4], "nobody", *image[5:], "--sign-key", key], "nobody"),
        (["job", "create", "-t", "acme", "--firmware", "probe-x", "9.9"], "no firmware 9.9"),
        (["job", "create", "-t", "acme", "--firmware", "probe-x", "9.9", "-c", "sync-now"], "What is to be done?"),
    ):
        done = run(*words)
        assert (done.exit_code, said in done.stderr) == (2, True), done.output
    assert answer(run("firmware", "list", "--json")) == []
    assert add(run, tmp_path, "1.0").exit_code == 0
    other = add(run, tmp_path, "1.0", image="1.1")
    assert (other.exit_code, "another image already" in other.stderr) == (2, True)
    lone = run("job", "create", "-t", "acme", "--firmware", "probe-x", "1.0", "--rollback")
    assert (lone.exit_code, "no rollback release" in lone.stderr) == (2, True)


def test_jobs_and_lists_tell_of_releases_without_their_signatures(run: Run, tmp_path: Path) -> None:
    """Anyone who reads a log of `job list --json` could send devices back before an operator does."""
    assert add(run, tmp_path, "1.0").exit_code == 0
    new, back = answer(add(run, tmp_path, "1.1", "--json"))
    job = answer(run("job", "create", "-t", "acme", "--firmware", "probe-x", "1.1", "--rollback", "--json"))["job"]
    [row] = answer(run("job", "list", "--json"))
    without = {name: value for name, value in new.items() if name != "signature"}
    assert row["spec"] == {"firmware": without, "back": {k: v for k, v in back.items() if k != "signature"}}
    listed = answer(run("firmware", "list", "--json"))
    assert [(each["release"], each["sha256"]) for each in listed[:2]] == [
        (back["release"], back["sha256"]),
        (new["release"], new["sha256"]),
    ]
    [gateway] = answer(run("job", "show", job, "--json"))
    assert (gateway["gateway"], gateway["state"]) == ("gw-cli", "waiting")
    commands = [["job", "list"], ["job", "show", job], ["firmware", "list"], ["audit", "list"]]
    for words in commands:
        for shown in (run(*words), run(*words, "--json")):
            assert shown.exit_code == 0, shown.output
            for each in (new, back):
                assert each["signature"] not in "".join(shown.stdout.split())


def test_a_twin_tells_what_is_not_yet_as_it_should_be(run: Run, tmp_path: Path) -> None:
    """Anyone who looks for the reason of a slow rollout asks one gateway."""
    [made] = answer(add(run, tmp_path, "1.0", "--json"))
    patch = json.dumps({"firmware": {"probe-x": made}})
    assert run("twin", "set", "gw-cli", "--patch", patch).exit_code == 0
    rows = json.loads(run("twin", "diff", "gw-cli", "--json").stdout)["differences"]
    assert {"what": "firmware probe-x", "desired": "1.0", "reported": None, "why": "no report yet"} in rows
    elsewhere = run("twin", "set", "gw-cli", "--patch", json.dumps({"firmware": {"scale-y": made}}))
    assert (elsewhere.exit_code, "under the model" in elsewhere.stderr) == (1, True)
