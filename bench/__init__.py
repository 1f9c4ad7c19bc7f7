"""Benchmarks: ratios and rates measured side by side in one run, on real servers. Run them with `make bench`."""
