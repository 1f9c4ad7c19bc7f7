"""What the pages say is what the code does."""

import json
import re
from pathlib import Path

import pytest

from edge_agent.ledger.drafts import from_event
from wire_protocol.firmware import FirmwareOffer
from wire_protocol.messages import DeviceEvent, DeviceReading, DeviceReceipt, Message
from wire_protocol.topics import TOPICS
from wire_protocol.twin import DeviceConfig

ROOT = Path(__file__).parent.parent
PAGES = sorted(path for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """A dead link is the first thing a newcomer finds."""
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_examples_for_firmware_authors_are_valid() -> None:
    """Whoever copies an example must get a receipt, not a refusal."""
    text = (ROOT / "docs" / "firmware.md").read_text(encoding="utf-8")
    kinds: list[type[Message]] = [DeviceEvent, DeviceReading, DeviceReceipt, DeviceConfig, FirmwareOffer]
    examples = re.findall(r"```json\n(.*?)\n```", text, flags=re.DOTALL)
    assert len(examples) == len(kinds)
    for kind, example in zip(kinds, examples, strict=True):
        message = kind.decode(json.dumps(json.loads(example)).encode())
        if isinstance(message, DeviceEvent):
            assert from_event("scanner", message).destination == "@customer"


def test_the_page_for_firmware_authors_names_every_device_topic() -> None:
    """A topic that is not on the page does not exist for firmware."""
    text = (ROOT / "docs" / "firmware.md").read_text(encoding="utf-8")
    for rule in TOPICS:
        if "{device}" in rule.pattern:
            assert f"`{rule.pattern}`" in text


@pytest.mark.parametrize("page", ["guarantees.md", "security.md"])
def test_every_test_that_a_promise_names_exists(page: str) -> None:
    """A promise whose test was renamed or removed is no longer kept by anything."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
    assert len(named) > 15
    for path, name in named:
        source = (ROOT / path).read_text(encoding="utf-8")
        assert f"def {name}(" in source if name else source, (path, name)
