"""The broker's own token, renewed at half its life. One that cannot be renewed is left to whoever writes its file."""

import logging
import threading
from typing import Final

from hermetic.attestation.broker.stores.openbao.service import BaoService
from hermetic.errors import KeyStoreError, KeyStoreUnavailableError

RENEW_AT: Final = 0.5
"""Part of its life after which a token is renewed."""

RETRY_S: Final = 30.0
"""Until a renewal that was not answered is tried again, in seconds."""

_log = logging.getLogger("hermetic.broker")


class TokenRenewal:
    """A thread that renews the token until it is closed."""

    def __init__(self, service: BaoService) -> None:
        """Begin at once."""
        self._service = service
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="openbao-renewal", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End; a request that is on its way is not waited for."""
        self._end.set()

    def _run(self) -> None:
        wait_s: float | None = 0.0
        while wait_s is not None and not self._end.wait(wait_s):
            wait_s = self._renew()

    def _renew(self) -> float | None:
        """Renew once; seconds until the next time, None where there is none."""
        try:
            answer = self._service.ask("POST", "auth/token/renew-self", {})
        except KeyStoreUnavailableError as error:
            _log.warning("openbao's token was not renewed: %s", error)
            return RETRY_S
        except KeyStoreError:  # not renewable
            return None
        auth = answer.get("auth")
        life_s = auth.get("lease_duration") if isinstance(auth, dict) else None
        return RENEW_AT * life_s if isinstance(life_s, int) and life_s > 0 else None
