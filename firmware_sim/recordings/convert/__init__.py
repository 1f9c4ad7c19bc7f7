"""Converters from published data sets to our recording format, so that anybody can reproduce a recording.

Invariant: the same input gives the same bytes, and what is left out is counted by its reason.
"""
