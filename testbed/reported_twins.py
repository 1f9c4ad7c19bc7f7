"""What a gateway reports of its twin."""

from wire_protocol.twin import ReportedTwin


def reported_twin(version: int, **rest: object) -> ReportedTwin:
    """A report of this version in force, with nothing else in it but `rest`."""
    return ReportedTwin.model_validate({"version": version} | rest)
