"""A Linux kernel of its own for a test, as a process: User-Mode Linux (Debian: user-mode-linux), with the host's files.

For what this host's kernel has and does not offer here: control groups of version 2 have a controller only where no
hierarchy of version 1 holds it, which is for a whole machine. The kernel is another, the code under test is the same.
Read-only but for /mnt, where temporary files go; no network but loopback.
"""

import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROGRAM: Final = "linux.uml"
MEMORY: Final = "1G"
START_S: Final = 150  # on a loaded machine
_STATUS: Final = "own-kernel-status "
_INIT: Final = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/mnt TMPDIR=/mnt LANG=C.UTF-8
export PYTHONDONTWRITEBYTECODE=1 OPENBLAS_NUM_THREADS=1
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /mnt
mount -t cgroup2 cgroup2 /sys/fs/cgroup
echo "+memory +pids" > /sys/fs/cgroup/cgroup.subtree_control
cd {folder}
for command in {scratch}/command-*; do
    mkdir /sys/fs/cgroup/${{command##*/}}.service
    sh "$command" < /dev/null 2>&1
    echo "{status}$?"
done
echo o > /proc/sysrq-trigger
sleep 60
"""

# As systemd delegates a group to a service: alone in it, with controllers.
_COMMAND: Final = """echo $$ > /sys/fs/cgroup/{name}.service/cgroup.procs
exec {command}
"""


@dataclass(frozen=True, slots=True)
class Ended:
    """What commands printed, and their exit statuses: as many as came to an end."""

    statuses: tuple[int, ...]
    output: str


def available() -> bool:
    """Whether there is such a kernel, and its root would be one: its processes open files as whoever starts it."""
    return shutil.which(PROGRAM) is not None and os.geteuid() == 0


def run(commands: Sequence[Sequence[str]], scratch: Path) -> Ended:
    """Run commands one after another as root on a kernel of its own, in the working directory.

    `scratch` takes the kernel's files; its path needs no quotes.
    """
    for number, command in enumerate(commands):
        name = f"command-{number}"
        (scratch / name).write_text(_COMMAND.format(name=name, command=shlex.join(command)))
    init = scratch / "init"
    init.write_text(_INIT.format(folder=shlex.quote(str(Path.cwd())), scratch=scratch, status=_STATUS))
    init.chmod(0o755)
    arguments = [f"mem={MEMORY}", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", f"init={init}", "quiet"]
    arguments += ["con=null", "con0=null,fd:1", "con1=null", f"uml_dir={scratch}", "umid=kernel"]
    with subprocess.Popen(
        [PROGRAM, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={"PATH": os.environ["PATH"], "HOME": str(scratch), "TMPDIR": str(scratch)},
        start_new_session=True,
    ) as kernel:
        try:
            printed, _ = kernel.communicate(timeout=START_S)
        except BaseException:
            os.killpg(kernel.pid, 9)
            raise
    output = printed.decode(errors="replace").replace("\r", "")
    said = [line.removeprefix(_STATUS) for line in output.splitlines() if line.startswith(_STATUS)]
    return Ended(tuple(map(int, said)), output)
