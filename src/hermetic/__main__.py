"""`hermetic` and `python -m hermetic`: the command line of `hermetic.cli`, in a process that wipes what it frees.

A command that sees keys or plain models replaces its process (`zero_on_free.ensure`), whoever calls it. It is done
here first, before anything is imported that would only be imported a second time. The broker's process then takes its
compiled modules, where there are any.
"""

import sys
from collections.abc import Sequence
from typing import Final

SEE_SECRETS: Final = (("seal",), ("serve",), ("broker", "serve"), ("broker", "kek"))
"""The commands that replace their process, as they begin."""
BROKER: Final = ("broker", "serve")


def main() -> None:
    """Run the command line of this process; ends it with an exit code of `hermetic.cli.exit_codes`."""
    if sees_secrets(sys.argv[1:]):
        from hermetic.enclave import zero_on_free

        zero_on_free.ensure()
    if begins_as(BROKER, sys.argv[1:]):
        from hermetic import compiled

        compiled.BROKER.use()
    from hermetic import cli

    cli.main()


def sees_secrets(arguments: Sequence[str]) -> bool:
    """Whether these arguments begin as a command does that replaces its process."""
    return any(begins_as(command, arguments) for command in SEE_SECRETS)


def begins_as(command: Sequence[str], arguments: Sequence[str]) -> bool:
    """Whether these arguments are those of `command`."""
    return tuple(arguments[: len(command)]) == tuple(command)


if __name__ == "__main__":
    main()
