"""Locking a process down: workers before they see sealed bytes, front ends before they see a client.

    kernel.py       the system calls that Python's `os` does not offer
    namespaces.py   network, mount, IPC, UTS and cgroup namespaces; an empty read-only root
    identity.py     own uid, no capabilities
    limits.py       rlimits; which cgroup limits already hold
    process.py      not dumpable, no new privileges, dies with its parent, memory never writable and executable
    landlock.py     no files, no TCP, no signals outside
    syscalls.py     system call numbers        seccomp.py   a filter from rules
    syscall_policy.py   which system calls each profile may make
    properties.py   the decision: which properties hold, by which layers, what is waived, what is missing
    lockdown.py     the order in which a process goes through all of it

Each layer is a file that applies it and raises `OSError` where the kernel says no; only lockdown.py knows them all.
GPU profiles are not here yet. Facts behind the order and the lists: docs/adr/0020-properties-not-layers.md.
"""
