"""Stands in for systemctl on a machine without systemd: it starts a unit's ExecStart as the unit says.

It keeps to User, DynamicUser, Environment, EnvironmentFile, StateDirectory, Type=notify and ProtectSystem=strict, which
are what a unit gets wrong. `postgresql` is Debian's, whose clusters are started by a program of their own.

    systemctl [enable|disable [--now]|start|stop|restart|reload|is-active] UNIT…, systemctl daemon-reload
"""

import ctypes
import os
import pwd
import shlex
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

FOLDERS = (Path("/etc/systemd/system"), Path("/usr/lib/systemd/system"))
RUN = Path("/run/units")
READY_S_MAX = 60.0
CLONE_NEWNS = 0x00020000
PRIVATE_TMP = "/tmp"  # noqa: S108 - an empty one is mounted there


class Unit:
    """A unit file with its drop-ins: `settings` has each value of a name, in order; an empty value resets them."""

    def __init__(self, name: str) -> None:
        self.name = name.removesuffix(".service")
        stem, at, self.instance = self.name.partition("@")
        template = f"{stem}{at}.service"
        files = [folder / file for file in (f"{self.name}.service", template) for folder in FOLDERS]
        found = next((file for file in files if file.exists()), None)
        if found is None:
            sys.exit(f"Unit {self.name}.service not found.")
        drop_ins = sorted(FOLDERS[0].glob(f"{template}.d/*.conf")) if at else []
        drop_ins += sorted(FOLDERS[0].glob(f"{self.name}.service.d/*.conf"))
        self.settings: dict[str, list[str]] = {}
        for file in (found, *drop_ins):
            for line in file.read_text().replace("\\\n", " ").splitlines():
                name, is_setting, value = line.partition("=")
                if is_setting and not line.startswith(("#", ";", "[")):
                    self._set(name.strip(), value.strip())

    def _set(self, name: str, value: str) -> None:
        if value:
            self.settings.setdefault(name, []).append(value.replace("%i", self.instance))
        else:
            self.settings.pop(name, None)

    def all(self, name: str) -> list[str]:
        """The words of a setting that may be given several times."""
        return [word for value in self.settings.get(name, []) for word in shlex.split(value)]

    def last(self, name: str, default: str = "") -> str:
        """The setting as given last."""
        return self.settings.get(name, [default])[-1]

    @property
    def pid_file(self) -> Path:
        """Where the main process is noted."""
        return RUN / f"{self.name}.pid"

    @property
    def account(self) -> pwd.struct_passwd:
        """Who the processes of the unit run as."""
        return pwd.getpwnam("nobody" if self.last("DynamicUser") == "yes" else self.last("User", "root"))

    def environment(self) -> dict[str, str]:
        """What systemd gives a process: nothing of the caller's."""
        made = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "LANG": "C.UTF-8"}
        made |= {"HOME": self.account.pw_dir, "USER": self.account.pw_name}
        made |= dict(word.split("=", 1) for word in self.all("Environment"))
        for value in self.settings.get("EnvironmentFile", []):
            file = Path(value.removeprefix("-"))
            if file.exists() or not value.startswith("-"):
                lines = (line.strip() for line in file.read_text().splitlines())
                made |= dict(shlex.split(line)[0].split("=", 1) for line in lines if line and line[0] not in "#;")
        if seconds := self.last("WatchdogSec"):
            made["WATCHDOG_USEC"] = str(int(seconds) * 1_000_000)
        return made

    def pid(self) -> int | None:
        """The main process, when it lives."""
        try:
            pid = int(self.pid_file.read_text())
            return None if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z" else pid
        except (OSError, ValueError):
            return None

    def start(self) -> None:
        """Run ExecStartPre and ExecStart; wait for READY=1 of a unit of type notify."""
        if self.pid() is not None:
            return
        for other in self.all("Wants") + self.all("Requires"):
            if other.startswith("stocktide-"):
                Unit(other).start()
        RUN.mkdir(exist_ok=True)
        for name in self.all("StateDirectory"):
            folder = Path("/var/lib") / name
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(int(self.last("StateDirectoryMode", "0755"), 8))
            os.chown(folder, self.account.pw_uid, self.account.pw_gid)
        environment = self.environment()
        notices = None
        if self.last("Type") == "notify":
            address = RUN / f"{self.name}.notify"
            address.unlink(missing_ok=True)
            notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            notices.bind(str(address))
            address.chmod(0o777)
            environment["NOTIFY_SOCKET"] = str(address)
        for command in self.settings.get("ExecStartPre", []):
            subprocess.run(shlex.split(command), check=True)
        pid = self._spawn(shlex.split(self.last("ExecStart")), environment)
        self.pid_file.write_text(str(pid))
        if notices is not None:
            self._wait(notices)

    def _spawn(self, command: list[str], environment: dict[str, str]) -> int:
        pid = os.fork()
        if not pid:
            self._become(command, environment)
        return pid

    def _become(self, command: list[str], environment: dict[str, str]) -> NoReturn:
        self._detach()
        os.closerange(3, 256)
        if self.last("ProtectSystem") == "strict":
            self._protect()
        account = self.account
        os.initgroups(account.pw_name, account.pw_gid)
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)
        os.execve(command[0], command, environment)  # noqa: S606 - a unit names a program, not a line for a shell

    def _detach(self) -> None:
        log = os.open(RUN / f"{self.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.setsid()
        for number, file in enumerate((os.open("/dev/null", os.O_RDONLY), log, log)):
            os.dup2(file, number)

    def _protect(self) -> None:
        """Everything is read-only but what the unit says, in a mount namespace of the process."""
        if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS) != 0:
            sys.exit("unshare failed")
        mount = ["/usr/bin/mount"]
        states = [f"/var/lib/{name}" for name in self.all("StateDirectory")]
        for place in (*states, *self.all("ReadWritePaths")):
            subprocess.run([*mount, "--bind", place, place], check=True)
        subprocess.run([*mount, "-t", "tmpfs", "-o", "mode=1777", "tmpfs", PRIVATE_TMP], check=True)
        subprocess.run([*mount, "-o", "remount,bind,ro", "/"], check=True)

    def _wait(self, notices: socket.socket) -> None:
        until = time.monotonic() + READY_S_MAX
        notices.settimeout(0.2)
        while time.monotonic() < until:
            with suppress(TimeoutError):
                if b"READY=1" in notices.recv(4096):
                    self._listen(notices)
                    return
            if self.pid() is None:
                break
        sys.exit(f"Job for {self.name}.service failed. Its log ends:\n{self.log()}")

    def _listen(self, notices: socket.socket) -> None:
        """Take what the unit goes on to say, for as long as it lives: nobody answers for systemd's socket else."""
        if os.fork():
            return
        self._detach()
        while self.pid() is not None:
            with suppress(TimeoutError):
                notices.recv(4096)
        os._exit(0)

    def stop(self) -> None:
        """SIGTERM, and wait."""
        until = time.monotonic() + READY_S_MAX
        while (pid := self.pid()) is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            if time.monotonic() > until:
                sys.exit(f"{self.name} does not stop")
            time.sleep(0.05)
        self.pid_file.unlink(missing_ok=True)

    def reload(self) -> None:
        """ExecReload with $MAINPID."""
        for command in self.settings.get("ExecReload", []):
            subprocess.run(shlex.split(command.replace("$MAINPID", str(self.pid()))), check=True)

    def log(self) -> str:
        """The end of what the process wrote."""
        with suppress(OSError):
            return "\n".join((RUN / f"{self.name}.log").read_text(errors="replace").splitlines()[-20:])
        return ""


def postgresql(action: str) -> None:
    """Debian's clusters."""
    if action in {"start", "stop", "restart", "reload"}:
        subprocess.run(["pg_ctlcluster", "--skip-systemctl-redirect", "17", "main", action], check=True)


def main() -> None:
    """Do what systemctl would."""
    action, *words = [word for word in sys.argv[1:] if not word.startswith("-")]
    is_now = "--now" in sys.argv
    action = {"enable": "start" if is_now else "", "disable": "stop" if is_now else ""}.get(action, action)
    for name in words:
        if name.removesuffix(".service") == "postgresql":
            postgresql(action)
            continue
        unit = Unit(name)
        if action in {"stop", "restart"}:
            unit.stop()
        if action in {"start", "restart"}:
            unit.start()
        if action == "reload":
            unit.reload()
        if action == "is-active" and unit.pid() is None:
            sys.exit(3)


if __name__ == "__main__":
    main()
