"""Who attacks a broker over the network, and what refuses it; docs/attacks-on-the-broker.md is written from this.

`make attacks` writes the page; a test fails where page, list and tests disagree. Attacks on policies and keys are
tests/attestation/governance/attacks.py's.
"""

import sys
from pathlib import Path
from typing import Final

from tests.attestation.governance.attacks import ROOT, Attack
from tests.attestation.governance.attacks import page as page_of

PAGE: Final = ROOT / "docs/attacks-on-the-broker.md"

ADMIN: Final = "tests/attestation/broker/test_admin.py"
FRONT: Final = "tests/attestation/broker/test_listener.py"
JSON: Final = "tests/attestation/broker/test_strict_json.py"
HTTP: Final = "tests/attestation/broker/test_http1.py"
TLS: Final = "tests/attestation/broker/test_tls.py"
HYBRID: Final = "tests/attestation/broker/test_hybrid.py"
LEASES: Final = "tests/attestation/broker/test_leases.py"
REFUSALS: Final = "tests/attestation/broker/test_refusals.py"
BROKERS: Final = "tests/attestation/broker/state/test_brokers.py"
RACE: Final = "tests/attestation/broker/state/test_race.py"
ENROLMENT: Final = "tests/attestation/test_exchange.py"

HEAD: Final = """# Attacks on a broker over the network

A guest, a stranger, an administrator, and what refuses them. Written by `make attacks` from the list in
`tests/attestation/broker/attacks.py`. The checks and limits are those of [spec/key-broker.md](spec/key-broker.md).
Attacks on policies and keys have [a page of their own](attacks-on-governance.md), those on callers
[another](attacks.md).

| attack | refused by | shown by |
|---|---|---|
"""

ATTACKS: Final = (
    Attack("An attestation that was recorded, sent once more", "`AttestationError`", REFUSALS,
           "test_a_recorded_attestation_cannot_be_replayed"),
    Attack("Evidence over the challenge of another session", "`AttestationError`", REFUSALS,
           "test_a_nonce_of_another_session_is_refused"),
    Attack("A second attempt at a challenge, at the same broker, at once", "`AttestationError`", FRONT,
           "test_of_two_attempts_at_once_one_wins"),
    Attack("The same at another process, after the first one failed", "`AttestationError`", BROKERS,
           "test_a_failed_attempt_at_one_burns_the_nonce_at_the_other"),
    Attack("Two processes that have both read a challenge as unused", "`AttestationError`", RACE,
           "test_of_two_who_have_read_the_same_cell_one_changes_it"),
    Attack("A session's cookie, or token, that another client has", "`AttestationError`, `TokenVerifierError`",
           REFUSALS, "test_a_session_belongs_to_the_client_that_began_it"),
    Attack("A token signed by a key that it brings along, by none, or with another algorithm", "`TokenVerifierError`",
           REFUSALS, "test_a_forged_token_is_refused"),
    Attack("A key to wrap to with a weak algorithm, curve, exponent or point", "`AttestationError`", REFUSALS,
           "test_a_key_that_is_not_taken_is_refused"),
    Attack("A serving key's session asks for a model's key", "`release.purpose`", REFUSALS,
           "test_a_serving_key_gets_no_model_key"),
    Attack("The offer of hybrid key wraps stripped on the way", "`release.key_wrap`", HYBRID,
           "test_a_stripped_offer_gets_nothing_where_hybrid_is_demanded"),
    Attack("A header names an identity", "ignored", REFUSALS, "test_no_header_makes_an_identity"),
    Attack("A certificate with two SPIFFE names", "`AttestationError`", REFUSALS,
           "test_a_certificate_with_two_spiffe_names_is_nobody"),
    Attack("An admin token used twice, also after a restart", "`AdminAuthAccess`", ADMIN,
           "test_a_token_is_spent_after_a_restart_too"),
    Attack("A role leaves its paths by `..`, percent-encoding, other characters that look alike, NUL or line ends",
           "`AdminAuthAccess`, `InvalidRequestPath`", ADMIN, "test_no_spelling_of_a_path_leads_out_of_a_role"),
    Attack("A role leaves its prefix of names in the same ways", "`AdminAuthAccess`, `InvalidRequestPath`", ADMIN,
           "test_no_spelling_of_a_name_leads_out_of_a_prefix"),
    Attack("A server has heard of revocations in a log that a back-up has made shorter, and would miss the next ones",
           "told from the beginning", LEASES, "test_a_cursor_of_a_longer_log_misses_nothing"),
    Attack("JSON that has no UTF-8 (half of a character), so that a refusal could be neither sent nor recorded",
           "`InvalidRequest`", JSON, "test_what_has_no_utf_8_is_refused"),
    Attack("One body, two lengths: length and chunks, two lengths, unknown codings, folded headers", "400", FRONT,
           "test_where_a_request_ends_is_not_a_matter_of_opinion"),
    Attack("Bare line ends, NUL, a coding that nobody knows, two lengths that agree, another protocol", "400", HTTP,
           "test_what_is_no_request_is_not_one"),
    Attack("A chunk that is none, and a request behind it", "400", HTTP, "test_a_bad_chunk_ends_the_request"),
    Attack("A header in a trailer", "ignored", HTTP, "test_a_trailer_is_no_header"),
    Attack("A body that nobody asked for, without end", "nothing more is read", HTTP,
           "test_a_body_that_nobody_has_asked_for_is_not_read_on"),
    Attack("A client that asks and never reads", "nothing more is begun", HTTP,
           "test_who_does_not_read_gets_nothing_begun"),
    Attack("A request behind an upgrade", "ignored", HTTP, "test_behind_an_upgrade_nothing_is_a_request"),
    Attack("A certificate of a CA of the same name, of itself, weak, of a server, over, against X.509's strict rules",
           "TLS", TLS, "test_who_does_not_get_in"),
    Attack("TLS before 1.3", "TLS", TLS, "test_nothing_older_than_tls_1_3"),
    Attack("An old session instead of a certificate", "TLS", TLS, "test_no_session_is_resumed"),
    Attack("A record that was changed, or is too long", "TLS", TLS, "test_a_broken_record_ends_it"),
    Attack("A handshake byte by byte", "`handshake_s`", FRONT, "test_a_handshake_in_small_bites_has_no_more_time"),
    Attack("Half a request, and the end of TCP without a farewell of TLS", "no answer", FRONT,
           "test_half_a_request_that_ends_is_none"),
    Attack("Questions about nothing, without pause", "`requests_per_minute`", FRONT,
           "test_what_is_nobodys_is_counted_too"),
    Attack("A connection that says nothing, or half of a request (slow head, slow body)", "`connection_s`", FRONT,
           "test_a_connection_that_says_nothing_ends"),
    Attack("A connection that never shakes hands", "`handshake_s`", FRONT, "test_who_never_shakes_hands_is_cut_off"),
    Attack("One client holds every connection", "`connections_per_client`", FRONT,
           "test_one_client_does_not_hold_all_connections"),
    Attack("A head without end, trailers too", "400", FRONT, "test_a_head_without_end_is_not_kept"),
    Attack("A thousand requests sent ahead on one connection", "400", FRONT, "test_requests_sent_ahead_are_bounded"),
    Attack("A body as long as evidence where a few lines are due, which the event loop would read", "413", FRONT,
           "test_a_short_request_is_short"),
    Attack("One client begins many sessions", "`sessions_per_client`", REFUSALS,
           "test_too_many_sessions_of_one_client_are_refused"),
    Attack("One client asks without pause", "`requests_per_minute`", REFUSALS, "test_a_client_has_a_rate"),
    Attack("Handshakes spread over the processes of a broker", "`handshakes_per_minute`", BROKERS,
           "test_handshakes_are_counted_over_all"),
    Attack("One client takes every place of those who enrol a TPM's key", "`enrolments_per_client`", ENROLMENT,
           "test_one_client_leaves_room_for_others"),
)  # fmt: skip


def page() -> str:
    """Return what the page says."""
    return page_of(HEAD, ATTACKS)


if __name__ == "__main__":
    Path(sys.argv[1] if len(sys.argv) > 1 else PAGE).write_text(page())
