"""A PostgreSQL server of one's own on the loopback interface, for the tests that need one."""

from __future__ import annotations

import getpass
import importlib.util
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def _binaries() -> Path | None:
    """The folder of `initdb` and `pg_ctl`; Debian keeps them off the path."""
    found = shutil.which("initdb")
    places = [Path(found).parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((place for place in places if (place / "initdb").exists() and (place / "pg_ctl").exists()), None)


class Server:
    """Starts, stops and empties a server whose data lies in one folder."""

    def __init__(self, folder: Path, binaries: Path) -> None:
        self.folder, self.binaries = folder, binaries
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        # The server refuses to run as root.
        self.user = "postgres" if getpass.getuser() == "root" else getpass.getuser()
        self._as = ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups"]
        self._as = self._as if os.geteuid() == 0 else []

    def run(self, name: str, *words: str) -> None:
        subprocess.run(
            [*self._as, str(self.binaries / name), *words], check=True, timeout=60, cwd="/", stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def start(self) -> None:
        options = f"-p {self.port} -h 127.0.0.1 -k {self.folder} -c fsync=off"
        self.run(
            "pg_ctl", "-D", str(self.folder / "data"), "-w", "-l", str(self.folder / "log"), "-o", options, "start"
        )

    def stop(self) -> None:
        self.run("pg_ctl", "-D", str(self.folder / "data"), "-w", "-t", "600", "-m", "immediate", "stop")

    def url(self, database: str) -> str:
        """The URL of a new empty database."""
        import psycopg  # its absence skips the test

        where = f"postgresql://{self.user}@127.0.0.1:{self.port}"
        with psycopg.connect(f"{where}/postgres", autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{database}"'.encode())
        return f"{where}/{database}"


@contextmanager
def server(folder: Path) -> Iterator[Server]:
    """A running server in an empty folder; the test is skipped where PostgreSQL or its driver is not installed."""
    binaries = _binaries()
    if binaries is None or importlib.util.find_spec("psycopg") is None:
        pytest.skip("PostgreSQL or psycopg is not installed")
    made = Server(folder, binaries)
    if os.geteuid() == 0:
        shutil.chown(folder, made.user, made.user)
        for parent in folder.parents:  # pytest's folders are the user's alone
            if os.access(parent, os.W_OK) and parent.stat().st_uid == os.geteuid() and parent != parent.parent:
                parent.chmod(parent.stat().st_mode | 0o011)
    made.run("initdb", "-D", str(folder / "data"), "-A", "trust", "-U", made.user, "--no-sync")
    made.start()
    try:
        yield made
    finally:
        made.stop()
