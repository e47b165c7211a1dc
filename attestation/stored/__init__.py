"""Evidence that lies in files: which kind it is, what lies beside it, and what verifiers and a policy say to it.

    beside.py     what lies beside evidence: certificates, collateral, lists, logs
    forms.py      which kind the evidence is, and the JSON in which that kind travels
    tpm_parts.py  a TPM's quote in the parts that tpm2-tools writes
    unvouched.py  a TPM's quote without anybody who vouches for its key: for the built-in form alone
    trusted.py    whom to trust: the vendors whose roots are shipped, or the roots that somebody names
    judging.py    the verifier of each kind, given what lay beside
    verdict.py    all of it as one verdict: checks, claims, policy
    together.py   several pieces as one machine's

Pure: files are read by callers, time is an argument, nothing is fetched. Deliberately not here: evidence that answers a
challenge of ours (the broker and clients call verifiers/ with what they know of the exchange).
"""

from hermetic.attestation.stored.forms import Stored
from hermetic.attestation.stored.judging import judge, recognise
from hermetic.attestation.stored.together import judge_all, recognise_all
from hermetic.attestation.stored.trusted import given, shipped
from hermetic.attestation.stored.verdict import Verdict, listed, verdict

__all__ = [
    "Stored",
    "Verdict",
    "given",
    "judge",
    "judge_all",
    "listed",
    "recognise",
    "recognise_all",
    "shipped",
    "verdict",
]
