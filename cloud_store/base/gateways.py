"""Gateways as the registry has them: the only source of a gateway's tenant and site."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from cloud_store.base import sql
from cloud_store.base.connection import Connection

_SQL: Final = sql.load("gateways")


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway as the registry has it."""

    gateway_id: int
    name: str
    tenant_id: int
    site_id: int
    active: bool


def named(connection: Connection, wanted: Collection[str]) -> dict[str, Gateway]:
    """The registered ones among some gateways, disabled ones included."""
    rows = connection.execute(_SQL["named"], {"names": list(wanted)})
    return {name: Gateway(number, name, tenant, site, state == "active") for name, number, tenant, site, state in rows}
