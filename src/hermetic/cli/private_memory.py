"""What every command that sees a key or a plain model does: its memory is nobody else's business."""


def keep_memory_private() -> None:
    """No core dump, and no other process of this user may read this one's memory (ptrace, /proc/PID/mem).

    Not dumpable, because a core dump that is piped into a program ignores the limit. Does not stop root.
    """
    from hermetic.enclave.isolation.limits import forbid_core_dumps
    from hermetic.enclave.isolation.process import make_undumpable

    forbid_core_dumps()
    make_undumpable()
