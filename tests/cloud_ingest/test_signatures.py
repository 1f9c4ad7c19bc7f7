"""Keys and signatures of firmware, as operators use them."""

import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cloud_cli.app import app
from cloud_identity import signatures
from cloud_identity.errors import InvalidKey
from wire_protocol.firmware import Manifest

MANIFEST = Manifest(model="probe-x", version="1.1.0", release=7, size=5, sha256="a" * 64, replaces="1.2")


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A pair of keys, made by the command."""
    private, public = tmp_path / "key.pem", tmp_path / "key.pub"
    assert CliRunner().invoke(app, ["firmware", "keygen", str(private), str(public)]).exit_code == 0
    return private, public


def test_a_key_is_its_owners_alone_and_never_overwritten(pair: tuple[Path, Path]) -> None:
    """Anyone who has the key says what every device runs; whoever loses it can never update one again."""
    private, public = pair
    assert private.stat().st_mode & 0o777 == 0o600
    before = private.read_bytes()
    again = CliRunner().invoke(app, ["firmware", "keygen", str(private), str(public)])
    assert (again.exit_code, private.read_bytes()) == (2, before)


def test_openssl_signs_what_the_command_prints(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """A key in a safe signs with a tool that everybody has, and what it signed is what devices check."""
    private, public = pair
    image, signature = tmp_path / "image", tmp_path / "signature"
    image.write_bytes(b"image")
    options = ["firmware", "manifest", str(image), "--model", "probe-x", "--version", "1.1.0", "--release", "7"]
    printed = CliRunner().invoke(app, options)
    assert printed.exit_code == 0, printed.output
    (tmp_path / "manifest").write_bytes(printed.stdout_bytes)
    subprocess.run(
        ["openssl", "pkeyutl", "-sign", "-rawin", "-inkey", private, "-in", tmp_path / "manifest", "-out", signature],
        check=True,
    )
    fields = dict(zip(("model", "version", "release", "size", "sha256"), printed.stdout.splitlines()[1:6], strict=True))
    made = Manifest.model_validate(fields | {"release": 7, "size": 5})
    assert signatures.signed(made, signature, public) == signatures.sign(made, private)
    with pytest.raises(InvalidKey, match="not a signature of this release"):
        signatures.signed(made.model_copy(update={"version": "1.1.1"}), signature, public)


def test_what_is_no_key_is_told(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """A person at a command line gets a sentence, not a traceback."""
    private, public = pair
    rubbish = tmp_path / "rubbish"
    rubbish.write_bytes(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    other = tmp_path / "ec.pem"
    subprocess.run(["openssl", "ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", other], check=True)
    for key in (rubbish, other, public, tmp_path / "nothing"):
        with pytest.raises(InvalidKey):
            signatures.sign(MANIFEST, key)
    rubbish.write_bytes(bytes(64))
    for key in (rubbish, private, tmp_path / "nothing"):
        with pytest.raises(InvalidKey):
            signatures.signed(MANIFEST, rubbish, key)


@pytest.mark.parametrize(
    "options",
    [
        ["--model", "../x", "--version", "1.0", "--release", "1"],
        ["--model", "probe-x", "--version", "one", "--release", "1"],
        ["--model", "probe-x", "--version", "1.0/..", "--release", "1"],
    ],
)
def test_names_and_versions_are_checked(tmp_path: Path, options: list[str]) -> None:
    """A model is part of a document, of a sentence and of a signature: never of a path."""
    (tmp_path / "image").write_bytes(b"image")
    done = CliRunner().invoke(app, ["firmware", "manifest", str(tmp_path / "image"), *options])
    assert done.exit_code == 2


@pytest.mark.parametrize("size", [0, (16 << 20) + 1])
def test_an_image_has_a_size(tmp_path: Path, size: int) -> None:
    """Nothing and too much are both a mistake, and are told before anything is signed."""
    with (tmp_path / "image").open("wb") as file:
        file.truncate(size)
    options = ["--model", "probe-x", "--version", "1.0", "--release", "1"]
    done = CliRunner().invoke(app, ["firmware", "manifest", str(tmp_path / "image"), *options])
    assert done.exit_code == 2
