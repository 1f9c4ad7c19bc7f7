"""`python -m bench [NAME…] [--json]`: run the benchmarks and print what they measured, side by side."""

import argparse
import importlib
import json
import sys
import time
from typing import Any, Final

BENCHMARKS: Final = {
    "agent": "events through one agent, publish to commit",
    "ingest": "movements through one ingestor, acknowledged, beside raw COPY",
    "twin": "a changed twin, in force at the gateway and reported back, beside a broker's round trip",
    "tenants": "a quiet tenant beside a noisy one at ten times its quota",
    "hostile": "a quiet tenant beside a gateway of another that does its worst",
    "uplink": "bytes a movement",
    "cli": "cold start of the technician's command",
    "verify": "ledger verify on a million entries",
    "rollout": "a twin changed for ten thousand gateways at once, beside what the bound on pushes admits",
    "tls": "movements through one ingestor from gateways with certificates over TLS, beside plain TCP",
    "growth": "what questions take over millions of movements: movements, stock, stock of a month ago",
    "late_counts": "500 counts that come late over ten million movements of one SKU, beside 500 in time",
    "enrol": "a thousand gateways by claim over TLS",
}


def main() -> None:
    """Run the named benchmarks, or all."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; all when absent")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - BENCHMARKS.keys():
        parser.error(f"no benchmark {', '.join(sorted(unknown))}")
    results: dict[str, dict[str, Any]] = {}
    for name in arguments.names or BENCHMARKS:
        print(f"{name}: {BENCHMARKS[name]} …", file=sys.stderr, flush=True)
        began = time.perf_counter()
        results[name] = importlib.import_module(f"bench.{name}").run()
        print(f"{name}: done in {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    for name, measured in results.items():
        print(f"\n{name}: {BENCHMARKS[name]}")
        for key, value in measured.items():
            print(f"  {key:<34} {value:>14,.3f}" if isinstance(value, float) else f"  {key:<34} {value!s:>14}")


main()
