"""What people and programs may do: four roles, each with all that the one before may, and one table of permissions.

Invariant: no other place decides what a role may.
"""

from collections.abc import Collection, Mapping
from typing import Final, Literal, TypeAlias, get_args

Role: TypeAlias = Literal["viewer", "technician", "operator", "admin"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)

Permission: TypeAlias = Literal[
    "stock:read",
    "movements:read",
    "gateways:read",
    "alarms:read",
    "quota:read",
    "keys:read",
    "keys:write",
    "audit:read",
]
# The lowest role that has each permission.
PERMISSIONS: Final[Mapping[Permission, Role]] = {
    "stock:read": "viewer",
    "movements:read": "viewer",
    "gateways:read": "technician",
    "alarms:read": "technician",
    "quota:read": "operator",
    "keys:read": "admin",
    "keys:write": "admin",
    "audit:read": "admin",
}


def of(role: Role, scopes: Collection[str] | None = None) -> frozenset[Permission]:
    """The permissions of a role; `scopes` narrow them and never add any."""
    rank = ROLES.index(role)
    return frozenset(
        permission
        for permission, lowest in PERMISSIONS.items()
        if ROLES.index(lowest) <= rank and (scopes is None or permission in scopes)
    )


def highest(names: Collection[str]) -> Role | None:
    """The highest role among some names; None when none of them is a role."""
    return next((role for role in reversed(ROLES) if role in names), None)
