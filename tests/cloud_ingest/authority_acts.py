"""What is done to an authority's directory, in processes that are killed in the middle."""

from pathlib import Path

from cloud_identity.authority import Authority


def make_authority(directory: Path) -> None:
    """As `ca init` does."""
    Authority.create(directory, "Test")


def rotate(directory: Path) -> None:
    """As `ca rotate` does."""
    Authority(directory).add("Next")


def retire(directory: Path) -> None:
    """As `ca retire` does, of the one authority that no longer signs."""
    authority = Authority(directory)
    authority.retire(authority.members()[1].key_id)
