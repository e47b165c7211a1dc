"""Is the evidence acceptable? Forms of what it must show, and the judging of claims by them.

Specification: docs/spec/appraisal-policy.md. Reading order:

    form.py      one form, as read from TOML           values.py   what its fields are made of
    tpm.py, snp.py, dcap.py (tdx, sgx), nvgpu.py, hermetic.py    one table of the form each, and its rules
    measured.py  whether the code is measured          verdict.py  every rule at once: `judge`, `appraise`
    choose.py    which form is a model's               genuine.py  the built-in of `hermetic verify`
    rules.py     how a rule is recorded

Pure: time is an argument. Deliberately not here: whether the evidence is genuine (verifiers/), asked before.
"""

from hermetic.attestation.policy.choose import choose
from hermetic.attestation.policy.form import FORMAT, AppraisalPolicy
from hermetic.attestation.policy.genuine import GENUINE
from hermetic.attestation.policy.verdict import Appraisal, appraise, failures, judge

__all__ = ["FORMAT", "GENUINE", "Appraisal", "AppraisalPolicy", "appraise", "choose", "failures", "judge"]
