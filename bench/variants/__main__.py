"""Runs a program of the server as a variant: `python -m hermetic.bench.variants VARIANT -m MODULE ARGUMENTS`.

What that program starts (front ends, workers) is started as the same variant, on compiled modules unless the variant
replaces something in them.
"""

import os
import runpy
import sys
from typing import NoReturn

from hermetic import compiled
from hermetic.bench.variants.patches import ALL, COMPILED, FRONT_END, HERMETIC, WORKER, apply, whole
from hermetic.errors import ConfigurationError


def main(arguments: list[str]) -> NoReturn:
    """Apply the variant, then run the module's own main function."""
    variant, _, module, *rest = arguments
    if module == COMPILED:
        module, *rest = rest
        if whole(variant) == ALL:
            compiled.REQUESTS.use()
    if module == FRONT_END:
        from hermetic.server import frontend

        apply(variant, module)
        frontend.end(rest)
    if module == WORKER:
        from hermetic.enclave import worker

        apply(variant, module)
        os._exit(worker.main(rest))
    if module == HERMETIC:
        _refuse_all_but_the_demo(rest)
        from hermetic import cli
        from hermetic.server import assembly  # noqa: F401 - what is replaced must have been imported

        apply(variant, module)
        sys.argv = ["hermetic", *rest]
        cli.main()
        sys.exit(0)
    if not module.startswith("hermetic.server."):
        raise ConfigurationError(f"variant: wanted a program of the server, got {module}")
    sys.argv = [module, *rest]  # one that no request passes: as it is
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    sys.exit(0)


def _refuse_all_but_the_demo(arguments: list[str]) -> None:
    from pathlib import Path

    from hermetic.server.config import ServerConfig

    command, option, path = arguments
    profile = ServerConfig.load(Path(path)).profile
    if (command, option, profile) != ("serve", "--config", "demo"):
        raise ConfigurationError(f'variant: wanted serve --config FILE with profile = "demo", got {command}, {profile}')


if __name__ == "__main__":
    main(sys.argv[1:])
