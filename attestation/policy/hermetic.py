"""What our own runtime data must say: the table [hermetic] of a form, and its rules."""

from typing import Literal, Self

from pydantic import Field, StrictBool, model_validator

from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import HermeticClaims, Name, Profile
from hermetic.attestation.policy import rules
from hermetic.attestation.policy.values import Any, Digests, Form

_RULES = ("manifest_digest", "trusted_publishers", "waivers", "zeroing")


class HermeticForm(Form):
    """What our own runtime data must say. Guests of Trustee send none, and meet only `required = false`."""

    required: StrictBool
    manifest_digest: Digests | Any
    trusted_publishers: Digests | Any
    waivers: tuple[Name, ...] | Any = Field(description="the only waivers that are allowed")
    zeroing: Literal["enforced"] | Any
    # The one field that may be left out: forms that were signed for before it was there keep their digests.
    key_wrap: Literal["hybrid"] | None = None

    @model_validator(mode="after")
    def _is_coherent(self) -> Self:
        """Refuse demands that a guest escapes by saying nothing."""
        written = [name for name in _RULES if getattr(self, name) != "any"]
        written += ["key_wrap"] if self.key_wrap is not None else []
        if written and not self.required:
            raise ValueError(
                f"a guest that sends no runtime data would escape {', '.join(written)}: "
                'write required = true, or "any" for each'
            )
        return self


def judge_hermetic(checks: Checks, claims: HermeticClaims | None, form: HermeticForm, profile: Profile) -> None:
    """Record in `checks` what `form` says to `claims`; None where the guest sent none."""
    if form.required:
        got = "none" if claims is None else "came along"
        checks.demand("hermetic.required", claims is not None, "runtime-data.hermetic", got)
    else:
        checks.skip("hermetic.required", "not demanded")
    if claims is None:
        return
    checks.demand("hermetic.profile", profile in {claims.profile, "demo"}, profile, claims.profile)
    if claims.purpose == "model":
        rules.one_of(checks, "hermetic.manifest_digest", form.manifest_digest, claims.manifest_digest)
    else:
        checks.skip("hermetic.manifest_digest", "a serving key is certified before any model is there")
    rules.one_of(checks, "hermetic.trusted_publishers", form.trusted_publishers, claims.trusted_publishers)
    if form.waivers == "any" or claims.waivers is not None:
        rules.only(checks, "hermetic.waivers", form.waivers, claims.waivers or ())
    else:
        checks.fail("hermetic.waivers", f"only {sorted(form.waivers)}", "unsaid")
    wanted = form.zeroing if form.zeroing == "any" else (form.zeroing,)
    rules.one_of(checks, "hermetic.zeroing", wanted, claims.zeroing)
    if form.key_wrap is not None:
        _judge_key_wrap(checks, claims)


def _judge_key_wrap(checks: Checks, claims: HermeticClaims) -> None:
    if claims.purpose == "model":
        got = "classical" if claims.hybrid_key is None else "hybrid"
        checks.equal("hermetic.key_wrap", "hybrid", got)
    else:
        checks.skip("hermetic.key_wrap", "nothing is wrapped to a serving key")
