"""What wakes twins and commands: a notification of the database, and a look now and then for one that was lost."""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from cloud_ingest.threads import uninterrupted
from cloud_store.downlink import DownlinkFeed
from cloud_store.errors import StoreError

RETRY_S: Final = 1.0
LOOK_S: Final = 5.0  # how often is looked without having been told
_LOG = structlog.get_logger()


async def listen(feed: DownlinkFeed, *wake: Callable[[], None]) -> None:
    """Call all of `wake` whenever something may have changed, until cancelled."""
    while True:
        try:
            await uninterrupted(lambda: feed.wait(LOOK_S))
        except StoreError as error:
            _LOG.warning("downlink_feed_lost", reason=str(error), hint=error.hint)
            await asyncio.sleep(RETRY_S)
        for each in wake:
            each()
