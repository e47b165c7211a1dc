"""Who may change policies and keys: k of n operators, who sign offline (docs/spec/governance.md).

    contents.py    what a change can be about (subjects), and what it can say (contents)
    change.py      the first set; a change, its exact bytes, its digest, its signatures
    standing.py    what a log's changes add up to, and whether the next one follows
    proposing.py   the next change, out of what a broker says is in force
    operator_key.py, encrypted_key.py, operator_token.py    what an operator signs with: a file, or a PKCS #11 token
    alone.py       signing in the step that asks for it, where one signature is enough

Pure, but for the last two lines. Here is what the broker, its operators and its auditors share; what the broker does
with it is broker/governance_desk.py and broker/governed.py.
"""

from hermetic.attestation.governance.change import Change, First, Signature, Statement
from hermetic.attestation.governance.contents import (
    FloorContent,
    Form,
    KeyContent,
    ModelForm,
    OfConfiguration,
    OfFloor,
    OfKey,
    OfOperators,
    OfPolicy,
    OfRevocation,
    Operator,
    OperatorSet,
    RestoreContent,
)
from hermetic.attestation.governance.operator_key import OperatorKey
from hermetic.attestation.governance.standing import Governance, InForce

__all__ = [
    "Change",
    "First",
    "FloorContent",
    "Form",
    "Governance",
    "InForce",
    "KeyContent",
    "ModelForm",
    "OfConfiguration",
    "OfFloor",
    "OfKey",
    "OfOperators",
    "OfPolicy",
    "OfRevocation",
    "Operator",
    "OperatorKey",
    "OperatorSet",
    "RestoreContent",
    "Signature",
    "Statement",
]
