"""A site's ledger for its gateways: the frames of every log, as they came, after what a gateway has.

Invariant: a gateway is given frames of its own site only; which site that is, the registry says.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from cloud_store.base import sql
from cloud_store.base.connection import Connection
from wire_protocol.site_messages import SITE_LOGS_MAX, LogCursor, SiteFrame, SiteRequest

FRAMES_PER_READ: Final = 16
_SQL: Final = sql.load("sites")


class SiteReply(NamedTuple):
    """What a gateway is sent: frames in the order of their logs, where all logs stand, whether that was all.

    `known` is false for a gateway that is not in the registry or not active: it is not answered at all.
    """

    frames: list[SiteFrame]
    heads: list[LogCursor]
    more: bool
    known: bool = True


def peers(connection: Connection, sites: Iterable[int]) -> dict[int, list[str]]:
    """The active gateways of some sites that have said last that they are online."""
    found: defaultdict[int, list[str]] = defaultdict(list)
    for site_id, name in connection.execute(_SQL["peers"], {"sites": sorted(sites)}):
        found[site_id].append(name)
    return dict(found)


def answer(connection: Connection, gateway: str, ask: SiteRequest, *, bytes_max: int) -> SiteReply:
    """What an active gateway lacks of its site's logs, at least one frame if any; nothing for any other gateway."""
    known = {(log.gateway, log.epoch): log.frame for log in ask.logs}
    rows = connection.execute(_SQL["heads"], {"gateway": gateway, "limit": SITE_LOGS_MAX}).fetchall()
    if not rows:
        active = connection.execute(_SQL["is_active"], {"gateway": gateway}).fetchone()
        return SiteReply([], [], more=False, known=bool(active and active[0]))
    heads = [
        LogCursor(gateway=name, epoch=epoch, frame=frame, seq=seq, digest=digest)
        for name, epoch, frame, seq, digest, *_ in rows
    ]
    ids = {head: tuple(row[5:]) for head, row in zip(heads, rows, strict=True)}
    frames: list[SiteFrame] = []
    room = bytes_max
    for head in heads:
        if (head.gateway, head.epoch) == (gateway, ask.own):
            continue
        for frame in _frames(connection, head, ids[head], after=known.get((head.gateway, head.epoch), 0)):
            room -= len(frame.frame)
            if frames and room < 0:
                return SiteReply(frames, heads, more=True)
            frames.append(frame)
    return SiteReply(frames, heads, more=False)


def _frames(connection: Connection, head: LogCursor, ids: tuple[int, int], *, after: int) -> Iterator[SiteFrame]:
    parameters: Mapping[str, int] = {"gateway_id": ids[0], "epoch_id": ids[1], "last": head.frame}
    while after < head.frame:
        rows = connection.execute(_SQL["frames"], {**parameters, "after": after, "limit": FRAMES_PER_READ}).fetchall()
        for number, received_ms, payload, verdicts in rows:
            after = number
            yield SiteFrame(
                gateway=head.gateway,
                received_ms=int(received_ms),
                rejected=tuple(sorted(int(seq) for seq in verdicts or ())),
                frame=bytes(payload),
            )
        if len(rows) < FRAMES_PER_READ:
            return
