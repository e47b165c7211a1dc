"""Who attacks a broker's policies and keys, and what refuses it; docs/attacks-on-governance.md is written from this.

`make attacks` writes the page; a test fails where page, list and tests disagree.
"""

import ast
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[3]
PAGE: Final = ROOT / "docs/attacks-on-governance.md"

BROKER: Final = "tests/attestation/broker/test_governed.py"
FORMAT: Final = "tests/attestation/governance/test_governance.py"
SHARED: Final = "tests/attestation/broker/state/test_shared_governance.py"
REVOCATIONS: Final = "tests/attestation/broker/test_governed_revocations.py"
CONFIGURED: Final = "tests/attestation/broker/test_governed_configuration.py"
INSIDERS: Final = "tests/attestation/broker/test_governed_insiders.py"
ROLLED: Final = "tests/attestation/broker/state/test_rolled_back.py"
COMMANDS: Final = "tests/cli/test_broker_governance.py"
VECTORS: Final = "test_a_vector_ends_as_it_says"

HEAD: Final = """# Attacks on a broker's policies and keys

One operator, the broker's administrator, somebody with a copy of its files or its log's key, and what refuses them.
Written by `make attacks` from the list in `tests/attestation/governance/attacks.py`. The checks are those of
[spec/governance.md](spec/governance.md). Changes that are refused as documents are vectors
(`tests/vectors/governance/`).

| attack | refused by | shown by |
|---|---|---|
"""


@dataclass(frozen=True, slots=True)
class Attack:
    """One attack: in words, what refuses it, the file and name of its test."""

    words: str
    by: str
    file: str
    test: str


ATTACKS: Final = (
    Attack("A server asks for a key that nobody, or one operator alone, has signed for", "`release.signed`", BROKER,
           "test_a_pending_key_is_released_to_nobody_until_two_have_signed"),
    Attack("The admin token alone loosens a policy, or lowers a floor", "`governance.signatures`; `PolicyDeny`", BROKER,
           "test_the_admins_token_alone_changes_nothing"),
    Attack("One operator signs twice, or under two names with one key", "malformed; no such set", FORMAT,
           "test_whoever_signs_twice_counts_once"),
    Attack("A set of one person under two names", "malformed", FORMAT,
           "test_one_person_under_two_names_is_no_two_people"),
    Attack("k = 0, k > n, or a set that could never be changed again", "malformed", FORMAT,
           "test_a_threshold_that_nobody_or_everybody_meets_is_no_set"),
    Attack("Signatures of another change, name, broker or version, put under this one", "`governance.signatures`, "
           "`governance.broker`, `governance.version`, `governance.previous`", FORMAT, VECTORS),
    Attack("Signatures for a twin: same people, same log's origin, same log key", "`governance.broker`", BROKER,
           "test_changes_for_another_broker_are_worth_nothing_here"),
    Attack("Signatures for one key used for another", "`governance.signatures`, `governance.subject`", BROKER,
           "test_a_key_under_another_keys_signatures_stays_pending"),
    Attack("An older version of a policy handed in again", "`governance.version`", BROKER,
           "test_a_tighter_policy_counts_for_the_next_lease_and_cannot_be_taken_back"),
    Attack("An operator who was removed signs; a set is changed by the new set; signatures collected before that "
           "change", "`governance.signatures`, `governance.operators`", BROKER,
           "test_operators_change_their_own_set_and_who_left_signs_no_more"),
    Attack("An expired proposal, or one that never ends", "`governance.not_after`", BROKER,
           "test_an_expired_proposal_is_refused"),
    Attack("Other spellings of the same JSON: order, white space, escapes, floats, members twice or unknown",
           "malformed", FORMAT, VECTORS),
    Attack("The content exchanged under a statement, before an operator signs", "`hermetic broker sign`", COMMANDS,
           "test_a_change_whose_content_was_exchanged_is_not_signed"),
    Attack("The same JSON signed for another purpose", "`governance.signatures`", FORMAT,
           "test_a_signature_for_another_purpose_is_no_signature"),
    Attack("A policy of a short prefix that names a model of a longer one", "`client_certificate` of the longer one's; "
           "`governance.subject`", BROKER, "test_a_form_reaches_no_name_outside_its_prefix"),
    Attack("A form that is not for the name, so that a looser one might be asked", "`release.policy`", BROKER,
           "test_a_form_that_does_not_fit_releases_nothing_rather_than_what_a_shorter_one_says"),
    Attack("An operator or an admin's role of one prefix acts for another", "`governance.signatures`", FORMAT,
           "test_operators_sign_for_their_prefixes_only"),
    Attack("A role of the admin's of one prefix acts for another", "`AdminAuthAccess`", BROKER,
           "test_who_acts_for_a_prefix_sees_and_does_nothing_else"),
    Attack("The admin alone, in whatever role, or one operator takes a revocation back", "`PolicyDeny`; "
           "`governance.signatures`", REVOCATIONS, "test_a_revocation_is_taken_back_by_two_signatures_and_no_role"),
    Attack("What was signed for one revocation, used for a later one, or twice", "`governance.subject`, "
           "`governance.version`", REVOCATIONS, "test_what_was_signed_for_one_revocation_takes_no_later_one_back"),
    Attack("A floor lowered, or a revocation taken back, in a record that a holder of the log's key wrote", "no effect",
           REVOCATIONS, "test_records_that_loosen_without_signatures_have_no_effect"),
    Attack("A broker process that was started before operators were named goes on without them", "`release.signed`",
           SHARED, "test_a_broker_that_started_before_operators_were_named_releases_nothing"),
    Attack("The configuration is edited: another vendor's root, CA or key whose evidence counts, another client CA",
           "`governance.configuration`", CONFIGURED,
           "test_an_edited_trust_attests_and_releases_nothing_until_two_have_signed"),
    Attack("A session attested under roots that operators have replaced since", "`governance.configuration`",
           CONFIGURED, "test_a_session_from_before_gets_nothing_once_operators_signed_for_another_trust"),
    Attack("The configuration is edited: a role may do more, another key issues admin tokens", "`AdminAuthAccess`",
           CONFIGURED, "test_an_edited_role_or_issuer_does_nothing_but_have_changes_signed"),
    Attack("The configuration is edited: another client's serving certificate says a server's name",
           "`governance.configuration`", CONFIGURED, "test_no_certificate_says_a_name_that_operators_did_not_sign_for"),
    Attack("A file exchanged between its comparison with the signatures and its use", "read once", CONFIGURED,
           "test_a_file_that_is_exchanged_once_it_was_compared_is_not_used"),
    Attack("An admin of one prefix, who holds a key that issues tokens, names another role", "`AdminAuthAccess`",
           INSIDERS, "test_an_admin_of_one_prefix_names_no_other_role"),
    Attack("The same, where nobody thought of binding the issuer to roles", "no start", INSIDERS,
           "test_an_issuer_of_every_role_is_refused_beside_others_and_beside_roles_for_some_names"),
    Attack("Somebody who may only upload retires all versions of a model by a newer key that nobody signed for",
           "not counted", INSIDERS, "test_a_key_that_nobody_signed_for_retires_no_older_one"),
    Attack("An operator's key of small order, by which anybody signs without a private key", "malformed", INSIDERS,
           "test_a_key_by_which_everybody_signs_is_no_operators"),
    Attack("A stored key replaced by another upload of the same name, or in the store by a holder of its KEK",
           "`release.signed`; `InternalError`", BROKER,
           "test_a_key_put_in_place_of_another_is_pending_or_not_released"),
    Attack("A change, or a second first set, written into the log by a holder of the log's key", "no effect", BROKER,
           "test_a_change_that_the_log_holds_without_signatures_has_no_effect"),
    Attack("Two changes with the same version, raced at two brokers", "`governance.version`", SHARED,
           "test_of_two_changes_at_two_brokers_one_wins"),
    Attack("The shared log cut back to before a tighter policy while a broker runs", "nothing is decided", ROLLED,
           "test_an_older_log_brings_no_older_policy_back"),
    Attack("A session's older row put back, to use its nonce again", "`AttestationError`", ROLLED,
           "test_a_sessions_older_row_gives_its_nonce_no_second_attempt"),
    Attack("The broker's files set back to an older state", "a checkpoint kept elsewhere", BROKER,
           "test_a_log_set_back_is_found_out_by_a_checkpoint_kept_elsewhere"),
    Attack('`governance = "none"` written into the configuration; operators named a second time', "no start", BROKER,
           "test_a_configuration_cannot_undo_that_there_are_operators"),
)  # fmt: skip


def page(head: str = HEAD, attacks: Sequence[Attack] = ATTACKS) -> str:
    """Return what the page says."""
    rows = [f"| {one.words} | {one.by} | `{one.file}`: `{one.test}` |" for one in attacks]
    return head + "\n".join(rows) + "\n"


def functions_in(file: str) -> set[str]:
    """Return the names of the test functions in a file of ours."""
    return {node.name for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)}


if __name__ == "__main__":
    Path(sys.argv[1] if len(sys.argv) > 1 else PAGE).write_text(page())
