"""What wakes twins and commands: a notification of the database, and a look now and then for one that was lost."""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from cloud_ingest.threads import uninterrupted
from cloud_store.base.errors import StoreError
from cloud_store.base.notifications import DownlinkFeed

RETRY_S: Final = 1.0
LOOK_S: Final = 5.0  # how often is looked without having been told
SLICE_S: Final = 0.25
_LOG = structlog.get_logger()


async def listen(feed: DownlinkFeed, *wake: Callable[[], None]) -> None:
    """Call all of `wake` whenever something may have changed, until cancelled."""
    while True:
        try:
            await _change(feed)
        except StoreError as error:
            _LOG.warning("downlink_feed_lost", reason=str(error), hint=error.hint)
            await asyncio.sleep(RETRY_S)
        for each in wake:
            each()


async def _change(feed: DownlinkFeed) -> None:
    """Wait until told, or long enough; in slices, because a worker that is asked to stop waits for the thread."""
    for _ in range(round(LOOK_S / SLICE_S)):
        if await uninterrupted(lambda: feed.wait(SLICE_S)):
            return
