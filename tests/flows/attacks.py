"""Who attacks a caller's trust, and what refuses it: the tests' own list, and docs/attacks.md as written from it.

Each test takes the names that it expects from here, so page and tests cannot differ. `make attacks` writes the page.
"""

import ast
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = ROOT / "docs/attacks.md"

FORMS: Final = ("connect", "aio.connect")

FLOW: Final = "tests/flows/test_callers_who_verify.py"
FRONT_ENDS: Final = "tests/flows/test_front_ends.py"
JUDGEMENT: Final = "tests/client/test_judgement.py"
DETOURS: Final = "tests/client/test_detours.py"
NEIGHBOUR: Final = "tests/client/test_neighbour.py"
DESK: Final = "tests/server/test_evidence_desk.py"
RPC: Final = "tests/server/test_evidence_rpc.py"

HEAD: Final = """# Attacks on a caller's trust

Whoever stands between a caller and a server, or behind the server, and what refuses it. Written by `make attacks` from
the list in `tests/flows/attacks.py`, which the tests take the names from; a test fails where page and list disagree.
The checks are those of [spec/server-evidence.md](spec/server-evidence.md) and [spec/evidence.md](spec/evidence.md).

Attacks by processes (`tests/flows/`) first succeed against a stock client that trusts the CA alone, where one is
possible; then they fail here, and the attacker counts that nothing but the question for evidence has reached it.
`connect` and `aio.connect` are the two forms of `hermetic.client`, `forward` is `hermetic forward`; a dash: the attack
is on what they share, or on the server.

| attack | refused by | error | callers | shown by |
|---|---|---|---|---|
"""


@dataclass(frozen=True, slots=True)
class Attack:
    """One attack: in words, the checks that refuse it, the error that says so, the file and name of its test.

    `callers` are the forms of a caller that the test attacks, each.
    """

    words: str
    by: tuple[str, ...]
    error: str
    file: str
    test: str
    callers: tuple[str, ...] = ()


ATTACKS: Final[dict[str, Attack]] = {
    "middle": Attack(
        "A man in the middle with a valid certificate of the serving CA, who asks the real server for evidence",
        ("evidence.spki",),
        "VerificationError",
        FLOW,
        "test_a_man_in_the_middle_with_a_valid_certificate",
        FORMS,
    ),
    "split": Attack(
        "The same, who lets the handshake through to the real server, and takes the connection that follows: the "
        "evidence fits the key that the handshake showed",
        (),
        "NotReadyError: the leaf is the only anchor, no call begins",
        FLOW,
        "test_the_handshake_goes_to_the_server_and_the_rest_to_another",
        FORMS,
    ),
    "disk": Attack(
        "A relay that owns a copy of every file of the server's disk: no file has the serving key",
        ("tls",),
        "VerificationError",
        FLOW,
        "test_a_relay_with_a_copy_of_every_file_of_the_servers_disk",
        FORMS,
    ),
    "key-file": Attack(
        "The same where the operator keeps the serving key in a file: the relay has the key, and the evidence says so",
        ("hermetic.waivers",),
        "AppraisalError",
        FRONT_ENDS,
        "test_a_serving_key_from_a_file_serves_and_stands_in_the_evidence",
        ("connect",),
    ),
    "machine": Attack(
        "A genuine machine that is another one than the policy names: a twin of the server with its own TPM",
        ("tpm.ek",),
        "AppraisalError",
        FLOW,
        "test_a_policy_that_names_another_machine_refuses_this_one",
        FORMS,
    ),
    "stale": Attack(
        "Recorded evidence, sent once more as it was",
        ("evidence.nonce", "evidence.spki"),
        "VerificationError",
        FLOW,
        "test_stale_evidence",
        FORMS,
    ),
    "rewritten": Attack(
        "Recorded evidence under a statement that has been written anew: the caller's nonce, the attacker's key",
        ("tpm.quote.nonce",),
        "VerificationError",
        FLOW,
        "test_stale_evidence",
        FORMS,
    ),
    "nothing": Attack(
        "A server with a valid certificate that proves nothing",
        ("evidence.statement",),
        "VerificationError",
        FLOW,
        "test_a_server_that_proves_nothing",
        FORMS,
    ),
    "rotation": Attack(
        "The server's certificate rotates in mid-session to a key that nobody attested: the connection is cut, and an "
        "attacker with a certified key answers",
        ("evidence.spki",),
        "VerificationError",
        FLOW,
        "test_the_certificate_changes_in_mid_session_to_a_key_that_nobody_attested",
        FORMS,
    ),
    "door": Attack(
        "The same behind `hermetic forward`, under a client that cannot verify",
        ("evidence.spki",),
        "VerificationError",
        FLOW,
        "test_a_client_that_cannot_verify_comes_in_by_the_local_door",
        ("forward",),
    ),
    "neighbour": Attack(
        "Another user of the caller's machine comes in by the local door of `hermetic forward`",
        (),
        "AccessDeniedError",
        NEIGHBOUR,
        "test_a_process_of_another_user",
        ("forward",),
    ),
    "gone": Attack(
        "The same, who sends and goes: the kernel names the superuser for a socket that nobody holds any more",
        (),
        "AccessDeniedError",
        NEIGHBOUR,
        "test_who_has_gone_is_nobody",
        ("forward",),
    ),
    "proxy": Attack(
        "The environment names a proxy (`https_proxy`, `grpc_proxy`, `GRPC_ADDRESS_HTTP_PROXY`): it is never asked",
        (),
        "none: the connection is direct",
        DETOURS,
        "test_no_proxy_of_the_environment_is_asked",
        FORMS,
    ),
    "name": Attack(
        "The name means another address after the handshake: the channel goes to the address that was verified",
        (),
        "none: the name is asked about once",
        DETOURS,
        "test_a_name_is_asked_about_once_whatever_it_means_later",
        FORMS,
    ),
    "ticket": Attack(
        "A server gives tickets, with which a TLS session would go on past every handshake: none is used",
        (),
        "none: no session is resumed",
        DETOURS,
        "test_no_session_is_resumed",
        FORMS,
    ),
    "shared": Attack(
        "A channel whose proof failed shares its connection with another, which goes on: no two share one",
        (),
        "none: each has its own",
        DETOURS,
        "test_two_channels_share_no_connection",
    ),
    "version": Attack(
        "A server with a valid certificate that speaks TLS 1.2",
        ("tls",),
        "VerificationError",
        DETOURS,
        "test_an_older_version_of_tls_is_refused",
    ),
    "broker-to-caller": Attack(
        "Evidence that the machine made for a key broker, offered to a caller",
        ("tpm.quote.nonce",),
        "VerificationError",
        JUDGEMENT,
        "test_broker_evidence_offered_to_a_caller",
    ),
    "caller-to-broker": Attack(
        "Evidence that the machine made for a caller, offered to a key broker",
        ("tpm.quote.nonce",),
        "VerificationError",
        JUDGEMENT,
        "test_callers_evidence_offered_to_a_broker",
    ),
    "front-end": Attack(
        "A front end that was taken over asks for evidence over the digest that a key broker's challenge wants: "
        "it chooses 32 bytes, the supervisor all the rest",
        (),
        "none: what is signed is another digest",
        DESK,
        "test_a_front_end_chooses_32_bytes_and_nothing_of_what_is_signed",
    ),
    "frame": Attack(
        "The same asks for more or fewer than 32 bytes: it is ended",
        ("AskEvidence",),
        "BorderError",
        DESK,
        "test_a_frame_with_anything_but_32_bytes_is_refused",
    ),
    "flood": Attack(
        "A front end that was taken over asks without end: it is ended, the others are answered",
        ("evidence",),
        "BorderError",
        DESK,
        "test_a_front_end_that_floods_is_ended_and_the_others_are_answered",
    ),
    "greedy": Attack(
        "A caller asks without end: its own questions are bounded, and all share one quote an interval",
        ("evidence",),
        "OverloadedError",
        RPC,
        "test_waiting_is_bounded_for_one_caller_and_for_all",
    ),
    "unmeasured": Attack(
        "A server with a model that was not measured before its key came",
        ("evidence.measured",),
        "AppraisalError",
        JUDGEMENT,
        "test_a_model_that_was_never_measured",
    ),
    "models": Attack(
        "A server with a model that the caller's policy does not name",
        ("evidence.manifests",),
        "AppraisalError",
        JUDGEMENT,
        "test_a_model_that_the_policy_does_not_name",
    ),
}
"""By the name that tests look them up with."""


def page() -> str:
    """Return what the page says."""
    rows = [
        f"| {one.words} | {_listed(one.by)} | `{one.error}` | {_listed(one.callers)} | `{one.file}`: `{one.test}` |"
        for one in ATTACKS.values()
    ]
    return HEAD + "\n".join(rows) + "\n"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "-"


@cache
def functions_in(file: str) -> dict[str, str]:
    """Return the test functions in a file of ours: their names, and their source."""
    text = (ROOT / file).read_text()
    functions = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    return {node.name: ast.get_source_segment(text, node) or "" for node in functions}


if __name__ == "__main__":
    Path(sys.argv[1] if len(sys.argv) > 1 else PAGE).write_text(page())
