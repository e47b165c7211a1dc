"""Run a program of ours on compiled modules where there are any: `python -m hermetic.compiled MODULE ARGUMENTS`."""

import runpy
import sys

from hermetic import compiled

if __name__ == "__main__":
    compiled.REQUESTS.use()
    del sys.argv[0]  # `run_module` puts the program's own file in the place of its name
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
