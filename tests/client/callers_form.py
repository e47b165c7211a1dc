"""The caller's policy that tests of judgement and the conformance corpus begin with: any machine with a TPM."""

from typing import Final

_FORM: Final = """format = "hermetic-appraisal-policy/1"
name = "callers"
models = ["*"]
profile = "{profile}"
kinds = ["tpm"]
allow_unmeasured_code = true
client_certificate = ["{server}"]
allow_any_machine = false

[hermetic]
required = true
manifest_digest = "any"
trusted_publishers = ["{publishers}"]
waivers = ["memory"]
zeroing = "enforced"

[tpm]
ek = "any"
provisioned_ak = false
pcrs = {{}}
root_hashes = "any"
secure_boot = "any"
log_base = "zeros"
"""


def callers_form(profile: str, *, server: str, publishers: str) -> str:
    """The policy's text: what wants `profile` of the server by that name, and publishers of that SHA-256 in hex."""
    return _FORM.format(profile=profile, server=server, publishers=publishers)
