"""A first day, from empty Debian machines: the commands of the pages for newcomers, run as they stand there.

`pages` reads a page, `machines` makes machines without a network and runs the page's commands on them, `systemctl`
stands in for systemd, which does not run in a chroot.
"""

from testbed.first_day.machines import CommandFailed, Machine, World, world
from testbed.first_day.pages import Block, read

__all__ = ["Block", "CommandFailed", "Machine", "World", "read", "world"]
