"""Locking a process down: workers before they see sealed bytes, front ends before they see a client.

    layers.py       which layers there are, and what each does            data
    profiles.py     which kind of process may do what, and why            data
    attempts.py     what a hostile process would try; what stops it       data, held against the kernel by tests
    properties.py   the decision: which properties hold, by which layers, what is waived, what is missing
    lockdown.py     the order in which a process goes through all of it

    kernel.py       the system calls that Python's `os` does not offer    syscalls.py   their numbers
    namespaces.py   user, network, IPC and mount namespaces; an empty read-only root
    identity.py     own uid, no capabilities                              own_uid.py    one that nobody else has
    limits.py       rlimits                                               cgroup.py     control groups, v2 and v1
    process.py      not dumpable, no new privileges, dies with its parent, memory never writable and executable
    landlock.py     no files, no TCP, no signals outside
    seccomp.py      a filter from rules

Each layer is a file that applies it and raises `OSError` where the kernel says no; only lockdown.py knows them all.
Facts behind the order and the lists: docs/adr/0020-properties-not-layers.md. What holds, tried: docs/escape-matrix.md.
"""
