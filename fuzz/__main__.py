"""`python -m fuzz [NAME…] [--seconds N]`: coverage-guided fuzzing (libFuzzer, by way of atheris) of every decoder.

Each decoder is fuzzed in a process of its own, which ends with an error when an input raises anything but `WireError`,
takes longer than five seconds or needs more than 512 MiB. The input is then in build/fuzz/. `everything` is no
decoder: it attacks a real worker and a real agent (`fuzz.everything`).
"""

import argparse
import contextlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import atheris

with atheris.instrument_imports(include=["wire_protocol"]):
    from fuzz.decoders import DECODERS, samples
    from wire_protocol.errors import WireError

FOLDER: Final = Path("build/fuzz")
INPUT_S_MAX: Final = 5
RSS_MIB_MAX: Final = 512
INPUT_BYTES_MAX: Final = 16 * 1024
EVERYTHING: Final = "everything"


def main() -> None:
    """Fuzz the named decoders, or all, one after the other."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join((*DECODERS, EVERYTHING))}; all when absent"
    )
    parser.add_argument("--seconds", type=int, default=20, help="for each decoder")
    parser.add_argument("--inside", metavar="NAME", help=argparse.SUPPRESS)
    arguments, rest = parser.parse_known_args()
    if arguments.inside:
        inside(arguments.inside, [*rest, *arguments.names])  # what argparse took for a name is the corpus
        return
    failed = [name for name in arguments.names or (*DECODERS, EVERYTHING) if not fuzzed(name, arguments.seconds)]
    if failed:
        print(f"failed: {', '.join(failed)}; the inputs are in {FOLDER}")
        sys.exit(1)


def fuzzed(name: str, seconds: int) -> bool:
    """Fuzz one decoder in a process of its own. Returns whether it held."""
    if name == EVERYTHING:
        attack = [sys.executable, "-m", "fuzz.everything", "--seconds", str(seconds)]
        return subprocess.run(attack, check=False).returncode == 0
    corpus = FOLDER / name / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, sample in enumerate(samples().get(name, [])):
        (corpus / f"sample-{number}").write_bytes(sample)
    command = [
        sys.executable,
        "-m",
        "fuzz",
        "--inside",
        name,
        f"-max_total_time={seconds}",
        f"-timeout={INPUT_S_MAX}",
        f"-rss_limit_mb={RSS_MIB_MAX}",
        f"-max_len={INPUT_BYTES_MAX}",
        f"-artifact_prefix={FOLDER / name}/",
        str(corpus),
    ]
    with (FOLDER / name / "log").open("w+") as log:
        done = subprocess.run(command, stdout=log, stderr=log, check=False)
        log.seek(0)
        text = log.read()
    runs = re.findall(r"Done (\d+) runs", text)
    covered = re.findall(r"cov: (\d+)", text)
    print(
        f"{name:<16} {runs[-1] if runs else '-':>10} inputs {covered[-1] if covered else '-':>6} edges "
        f"{'held' if done.returncode == 0 else 'FAILED'}",
        flush=True,
    )
    return done.returncode == 0


def inside(name: str, options: list[str]) -> None:
    """The fuzzed process."""
    decoder = DECODERS[name]

    def one(payload: bytes) -> None:
        with contextlib.suppress(WireError):
            decoder(payload)

    atheris.Setup([sys.argv[0], *options], one)
    atheris.Fuzz()


main()
