"""What a front end prints: by Triton's log settings, on standard error, from where the supervisor's journal has it.

`info`, `warning` and `error` each turn one level on or off; from `verbose_level` 1 on, the record of each request is
printed too, as it goes to the log of requests: it holds no payload. ISO8601 puts the moment before each line.
"""

import logging
import time
from collections.abc import Sequence
from typing import Final

from hermetic.server.trace_rules import LogRules

LINE: Final = "front end %(process)d: %(levelname)s: %(message)s"
DATED: Final = "%(asctime)s.%(msecs)03dZ " + LINE
_log: Final = logging.getLogger(__name__)


class _Wanted(logging.Filter):
    def __init__(self, rules: LogRules) -> None:
        super().__init__()
        self._rules = rules

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether this line is printed."""
        rules = self._rules
        if record.levelno >= logging.ERROR:
            return rules.error
        if record.levelno >= logging.WARNING:
            return rules.warning
        return rules.info if record.levelno >= logging.INFO else rules.verbose_level > 0


def print_records(records: Sequence[str]) -> None:
    """Print records of requests: for `verbose_level` from 1 on."""
    for record in records:
        _log.debug("%s", record)


def follow(rules: LogRules) -> None:
    """Print by these rules from now on."""
    root = logging.getLogger()
    root.setLevel(logging.DEBUG if rules.verbose_level else logging.INFO)
    formatter = logging.Formatter(DATED if rules.format == "ISO8601" else LINE, datefmt="%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    for handler in root.handlers:
        for wanted in [one for one in handler.filters if isinstance(one, _Wanted)]:
            handler.removeFilter(wanted)
        handler.addFilter(_Wanted(rules))
        handler.setFormatter(formatter)
