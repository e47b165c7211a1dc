"""`make fuzz`: python -m tests.fuzz.run [--minutes N] [TARGET ...]. Every target in turn, under atheris.

Each starts from tests/corpus/TARGET, works in build/fuzz/TARGET, and leaves what it found there: `crash-...` files. Put
one into the corpus with its repair; `--minimise` adds what reaches code that the corpus does not, smallest first.
"""

import argparse
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Final

Step = tuple[str, int, int]

ROOT: Final = Path(__file__).resolve().parents[2]
CORPUS: Final = ROOT / "tests" / "corpus"
WORK: Final = ROOT / "build" / "fuzz"
INPUT_LIMIT: Final = 4096  # bytes of one input
MEMORY_LIMIT_MIB: Final = 4096
INPUT_TIMEOUT_S: Final = 10  # seconds that one input may take
INSTRUMENTED: Final = (
    "hermetic.server.scanner", "hermetic.server.codec", "hermetic.server.contents", "hermetic.server.forms",
    "hermetic.server.http2", "hpack",
    "hermetic.server.dispatch", "hermetic.server.outputs", "hermetic.server.shaping", "hermetic.server.worker_link",
    "hermetic.attestation.abi", "hermetic.attestation.collateral", "hermetic.attestation.stored",
    "hermetic.enclave.messages", "hermetic.enclave.manifest", "hermetic.enclave.sealed", "hermetic.server.messages",
    "hermetic.attestation.abi",
)  # fmt: skip


def main(arguments: list[str]) -> int:
    """Run the targets; the exit status is that of the worst."""
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run")
    parser.add_argument("--minutes", type=float, default=1.0, help="for each target")
    parser.add_argument("--minimise", action="store_true", help="add to the corpus what reaches new code")
    parser.add_argument("targets", nargs="*", default=list(TARGETS))
    chosen = parser.parse_args(arguments)
    worst = 0
    for target in chosen.targets:
        work = WORK / target
        work.mkdir(parents=True, exist_ok=True)
        (CORPUS / target).mkdir(parents=True, exist_ok=True)
        sys.stdout.write(f"== {target}\n")
        sys.stdout.flush()
        if chosen.minimise:
            status = _minimise(target, work)
        else:
            status = _libfuzzer(
                target,
                f"-max_total_time={int(chosen.minutes * 60)}",
                f"-artifact_prefix={work}/",
                work,
                CORPUS / target,
            )
        worst = max(worst, abs(status))
    return min(worst, 1)


def _minimise(target: str, work: Path) -> int:
    """Copy into the corpus what takes a step, from one line to another, that nothing in it takes; smallest first."""
    from tests.fuzz.targets import TARGETS

    kept = sorted((CORPUS / target).iterdir())
    found = sorted((path for path in work.iterdir() if path.is_file()), key=lambda path: path.stat().st_size)
    taken: set[Step] = set()
    for path in (*kept, *found):
        steps = _steps(TARGETS[target], path.read_bytes())
        if path.parent == work and not steps <= taken:
            shutil.copyfile(path, CORPUS / target / path.name)
        taken |= steps
    return 0


def _steps(target: Callable[[bytes], None], data: bytes) -> set[Step]:
    """Return which line follows which in the instrumented files, when `target` reads `data`."""
    steps: set[Step] = set()
    last: dict[FrameType, int] = {}

    def trace(frame: FrameType, event: str, _: object) -> object:
        if not frame.f_globals.get("__name__", "").startswith(INSTRUMENTED):
            return None
        if event == "line":
            steps.add((frame.f_code.co_filename, last.get(frame, 0), frame.f_lineno))
            last[frame] = frame.f_lineno
        return trace

    sys.settrace(trace)  # type: ignore[arg-type]
    try:
        target(data)
    finally:
        sys.settrace(None)
    return steps


def _libfuzzer(target: str, *arguments: object) -> int:
    options = [
        f"-max_len={INPUT_LIMIT}",
        f"-rss_limit_mb={MEMORY_LIMIT_MIB}",
        f"-timeout={INPUT_TIMEOUT_S}",
        "-print_final_stats=1",
        "-close_fd_mask=0",
    ]
    command = [sys.executable, "-m", "tests.fuzz.run", "--one", target, *options, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def one(target: str, arguments: list[str]) -> None:
    """Fuzz one target in this process, which ends here."""
    import atheris

    with atheris.instrument_imports(include=list(INSTRUMENTED)):
        from tests.fuzz.targets import TARGETS
    atheris.Setup([sys.argv[0], *arguments], TARGETS[target])
    atheris.Fuzz()


if __name__ == "__main__":
    # What the server logs of each bad input would bury what is said here. Not in a target: tests share its process.
    logging.getLogger("hermetic").setLevel(logging.CRITICAL)
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(main(sys.argv[1:]))
