"""Who calls: steps 2 and 3 of a call's way through the gate, and what is kept of a caller from call to call.

A certificate is judged by the wall clock, and by how far that was set back since the start: set back, it makes nobody
valid whose certificate had ended. TLS judges it once more, by the wall clock alone.
"""

from collections.abc import Hashable, Iterable

from hermetic.attestation.clock import SetBack
from hermetic.errors import AccessDeniedError, HermeticError
from hermetic.server.access import AccessTable, Principal, check_access
from hermetic.server.audit import who_part
from hermetic.server.config import Role
from hermetic.server.identity import Identities, Identity
from hermetic.server.limits import Accounts, Deafness, Usage
from hermetic.server.transport import Peer

__all__ = ["Caller", "Callers"]


class Caller:
    """A principal, with what is the same for all of its calls."""

    __slots__ = ("deafness", "principal", "usage", "who")

    def __init__(self, principal: Principal, usage: Usage, deafness: Deafness) -> None:
        self.principal = principal
        self.usage = usage
        self.who = who_part(principal)
        self.deafness = deafness


class Callers:
    """Everybody whom the gate has met under the configuration that holds. Moments are seconds of time.time()."""

    __slots__ = ("_access", "_accounts", "_behind_s", "_identities", "_met", "_set_back")

    def __init__(self, identities: Identities, access: AccessTable, accounts: Accounts) -> None:
        self._identities = identities
        self._access = access
        self._accounts = accounts
        self._met: dict[Identity, Caller] = {}
        self._set_back = SetBack()
        self._behind_s = 0.0  # the wall clock, when it was last looked at

    def look_at_the_clocks(self) -> None:
        """See whether the wall clock was set back; a reading for each call would cost more than it shows."""
        self._behind_s = self._set_back.seconds()

    def holder(self, peer: Peer, now: float) -> Hashable:
        """Return who counts as one client: an identity, or a certificate that is nobody's."""
        try:
            return self._identities.identify(peer, now + self._behind_s)
        except HermeticError:
            return peer.certificate

    def identified(self, peer: Peer, now: float) -> Caller:
        """Return who calls; raises as `Identities.identify` and `AccessTable.principal`."""
        identity = self._identities.identify(peer, now + self._behind_s)
        return self._met.get(identity) or self._meet(identity)

    def check_again(self, peer: Peer, roles: frozenset[Role], tenant: str, now: float) -> None:
        """Raise unless `peer` would be let in now to what one of `roles` is enough for, and as the same tenant."""
        principal = self._access.principal(self._identities.identify(peer, now + self._behind_s))
        check_access(principal, roles)
        if principal.tenant != tenant:  # what it asks would still be mixed with the old tenant's
            raise AccessDeniedError("this identity belongs to another tenant now: call again")

    def configure(self, identities: Identities, access: AccessTable) -> None:
        """Judge everybody by these from now on: nothing that was decided is kept."""
        self._identities, self._access = identities, access
        self._met.clear()

    def met(self) -> Iterable[Caller]:
        """Return everybody who has called since."""
        return self._met.values()

    def _meet(self, identity: Identity) -> Caller:
        principal = self._access.principal(identity)
        caller = self._met[identity] = Caller(principal, self._accounts.usage(identity), Deafness())
        return caller
