"""Become a program that stands back for everything else on the machine: `apart.py NICE USER PROGRAM ARGUMENT...`.

Linux shares its processors among sessions first (autogroup) and only then among the processes of each: beside a load that somebody started
in a session of their own, a nice value within the servers' session counts nothing. So the program gets a session of its own, and the nice
value is that of the whole session too. Run by its path, before it takes on the user, who may not be able to enter the clone.
"""

from __future__ import annotations

import os
import pwd
import sys
import time
from pathlib import Path

AUTOGROUP = Path("/proc/self/autogroup")
ATTEMPTS = 20
"""The kernel takes one such value in a tenth of a second, from all users together who are not root."""


def stand_back(nice: int) -> None:
    """Give this process a session of its own, and both a nice value."""
    # Only who leads no group may lead a session; the supervisor makes everyone it starts the leader of one.
    os.setpgid(0, os.getpgid(os.getppid()))
    os.setsid()
    os.nice(nice)
    # Not every kernel has them, and the file may be closed in a container: there the value within the session counts.
    for _ in range(ATTEMPTS if AUTOGROUP.is_file() else 0):
        try:
            AUTOGROUP.write_text(str(nice))
            return
        except BlockingIOError:
            time.sleep(0.1)
        except OSError as error:
            print(f"{AUTOGROUP} takes no nice value ({error}): loads may get less of the processors", file=sys.stderr)
            return


def take_on(name: str) -> None:
    """Become another user of the operating system, for good."""
    user = pwd.getpwnam(name)
    os.initgroups(name, user.pw_gid)
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)


def main() -> None:
    """Stand back, take on the user (`-`: stay who it is), and become the program."""
    nice, user, *command = sys.argv[1:]
    stand_back(int(nice))
    if user != "-":
        take_on(user)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
