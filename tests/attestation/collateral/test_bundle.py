"""Every vector of the format is accepted, or refused by the check that it is called after."""

import base64
import json
from datetime import UTC, datetime

import pytest

from hermetic.attestation.collateral import Bundle, check_items, pack, read_signers, vendor_roots
from hermetic.attestation.collateral.kinds import MAX_BUNDLE_SIZE, MAX_ENTRIES
from hermetic.attestation.log import NoteSigner
from hermetic.errors import ConfigurationError, InvalidRequestError, VerificationError
from tests.attestation.collateral import by_hand
from tests.vectors.collateral.generate import made

FOLDER = by_hand.VECTORS / "collateral"
SIGNERS = read_signers((FOLDER / "signers").read_text())
ROOTS = vendor_roots()
REFUSED = sorted(path.stem for path in FOLDER.glob("*.bundle") if path.stem != "accepted")


def failed_checks(error: VerificationError) -> list[str]:
    return sorted({failure.name for failure in error.failures})


def test_the_vectors_are_those_that_are_made() -> None:
    assert made() == {path.stem: path.read_bytes() for path in FOLDER.glob("*.bundle")}


def test_the_accepted_bundle_says_what_was_put_into_it() -> None:
    bundle = Bundle.load((FOLDER / "accepted.bundle").read_bytes(), SIGNERS)
    check_items(bundle.items, ROOTS)
    assert (bundle.number, bundle.created) == (7, datetime(2026, 3, 17, 8, tzinfo=UTC))
    assert bundle.signers == (by_hand.SIGNER,)
    assert [(item.kind, item.subject, item.data) for item in bundle.items] == [
        (row[0], row[1], row[4]) for row in by_hand.ROWS
    ]


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_bundle_is_refused_by_its_name(name: str) -> None:
    data = (FOLDER / f"{name}.bundle").read_bytes()
    with pytest.raises(VerificationError) as refused:
        check_items(Bundle.load(data, SIGNERS).items, ROOTS)
    assert failed_checks(refused.value) == [name.partition("--")[0]]


@pytest.mark.parametrize("name", [name for name in REFUSED if not name.startswith("bundle.signature")])
def test_without_a_signer_all_other_checks_are_made(name: str) -> None:
    with pytest.raises(VerificationError) as refused:
        check_items(Bundle.load_without_asking_who_signed((FOLDER / f"{name}.bundle").read_bytes()).items, ROOTS)
    assert failed_checks(refused.value) == [name.partition("--")[0]]


@pytest.mark.parametrize("missing", [by_hand.IDENTITY, by_hand.ROOT_CRL, by_hand.PCK_CRL])
def test_tcb_info_without_any_of_what_goes_with_it_is_refused(missing: by_hand.Row) -> None:
    items = Bundle.load(by_hand.whole([row for row in by_hand.ROWS if row is not missing]), SIGNERS).items
    with pytest.raises(VerificationError) as refused:
        check_items(items, ROOTS)
    assert failed_checks(refused.value) == ["item.complete"]


def test_every_item_that_fails_is_named() -> None:
    flipped = [data[:-1] + bytes([data[-1] ^ 1]) for data in by_hand.contents()]
    with pytest.raises(VerificationError) as refused:
        Bundle.load(by_hand.bundle(by_hand.manifest(by_hand.entries()), flipped), SIGNERS)
    wanted = [f"{row[0]} {row[1]}" for row in by_hand.ROWS]
    assert [failure.wanted.rpartition(":")[0] for failure in refused.value.failures] == wanted


def test_no_prefix_of_a_bundle_and_no_change_of_its_head_is_a_bundle() -> None:
    good = by_hand.whole()
    head = good.index(b"\n\n") + 200
    sizes = [*range(0, head, 97), len(good) - 1]
    for size in sizes:
        with pytest.raises(VerificationError):
            Bundle.load(good[:size], SIGNERS)
    for at in range(0, head, 53):
        changed = good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :]
        with pytest.raises(VerificationError):
            Bundle.load(changed, SIGNERS)


def test_a_second_signature_is_ignored_until_its_signer_is_listed_and_must_verify_then() -> None:
    written = by_hand.manifest(by_hand.entries())
    good, other = by_hand.note(written), by_hand.note(written, by_hand.STRANGER, by_hand.STRANGER_SEED)
    wrong = by_hand.note(written[:-1], by_hand.STRANGER, by_hand.STRANGER_SEED)
    stranger = read_signers(by_hand.verifier_line(by_hand.STRANGER, by_hand.STRANGER_SEED))

    def signed_by_both(second: bytes) -> bytes:
        both = good + second.partition(b"\n\n")[2]
        return (
            f"{by_hand.FORMAT}\n".encode() + by_hand.sized(written) + by_hand.sized(both) + b"".join(by_hand.contents())
        )

    assert Bundle.load(signed_by_both(wrong), SIGNERS).signers == (by_hand.SIGNER,)
    assert Bundle.load(signed_by_both(other), (*SIGNERS, *stranger)).signers == (by_hand.SIGNER, by_hand.STRANGER)
    with pytest.raises(VerificationError, match=r"bundle\.signature"):
        Bundle.load(signed_by_both(wrong), (*SIGNERS, *stranger))
    with pytest.raises(VerificationError, match=r"bundle\.signature"):
        Bundle.load(by_hand.whole(), ())


def test_bombs_are_refused_by_their_size_before_they_are_read() -> None:
    many = [
        by_hand.entry("vcek", f"{index:06}", "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z", b"x")
        for index in range(5000)
    ]
    with pytest.raises(VerificationError, match=rf"bundle\.manifest.*1 to {MAX_ENTRIES}"):
        Bundle.load(by_hand.bundle(by_hand.manifest(many), [b"x"] * 5000), SIGNERS)
    with pytest.raises(VerificationError, match=r"bundle\.structure"):
        Bundle.load(bytes(MAX_BUNDLE_SIZE + 1), SIGNERS)
    huge = [by_hand.entries()[6] | {"size": 1 << 40}]
    with pytest.raises(VerificationError, match=r"bundle\.manifest.*size"):
        Bundle.load(by_hand.bundle(by_hand.manifest(huge), []), SIGNERS)
    deep = b'{"created":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    with pytest.raises(VerificationError, match=r"bundle\.manifest"):
        Bundle.load(by_hand.bundle(deep, []), SIGNERS)


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("kind", "vcek\0"), ("kind", ["vcek"]), ("subject", 7), ("source", None), ("size", 0), ("size", True),
        ("size", 1.5), ("digest", "00"), ("digest", "G" * 64), ("valid-from", "2026-02-30T00:00:00Z"),
        ("valid-from", 1), ("valid-until", "9"),
    ],
)  # fmt: skip
def test_members_of_another_form_are_refused(member: str, value: object) -> None:
    wrong = [by_hand.entries()[6] | {member: value}]
    with pytest.raises(VerificationError, match=r"bundle\.manifest"):
        Bundle.load(by_hand.bundle(by_hand.manifest(wrong), by_hand.contents()[6:]), SIGNERS)


def test_what_is_packed_is_what_is_made_by_hand() -> None:
    items = Bundle.load(by_hand.whole(), SIGNERS).items
    created = datetime(2026, 3, 17, 8, tzinfo=UTC)
    signer = NoteSigner.parse(_private_key())
    written = pack(items[::-1], 7, created, [signer])
    assert written == by_hand.whole()
    with pytest.raises(InvalidRequestError, match="at least one signer"):
        pack(items, 7, created, [])
    with pytest.raises(InvalidRequestError, match="each kind and subject once"):
        pack([*items, items[0]], 7, created, [signer])
    with pytest.raises(InvalidRequestError, match="number"):
        pack(items, 0, created, [signer])


def test_a_signer_with_two_keys_has_signed_with_both() -> None:
    """Either signature taken out, and a signer is not one; an old reader, who has the first key alone, reads on."""
    items = Bundle.load(by_hand.whole(), SIGNERS).items
    signer = NoteSigner.generate("two@example.test", second=True)
    written = pack(items, 7, datetime(2026, 3, 17, 8, tzinfo=UTC), [signer])
    listed = read_signers(signer.verifier().encode())
    old = read_signers(signer.verifier().encode().partition("\n")[0])
    assert Bundle.load(written, listed).signers == Bundle.load(written, old).signers == ("two@example.test",)
    classical = NoteSigner.parse(signer.encode_private_key().partition("\n")[0])
    stripped = pack(items, 7, datetime(2026, 3, 17, 8, tzinfo=UTC), [classical])
    assert Bundle.load(stripped, old).signers == ("two@example.test",)
    with pytest.raises(VerificationError, match=r"bundle\.signature: .*expected an ML-DSA-65 signature"):
        Bundle.load(stripped, listed)


@pytest.mark.parametrize("text", ["", "# nobody\n", "name+0+key\n", by_hand.verifier_line() + "\n" + "x" * 9])
def test_a_list_of_signers_is_read_strictly(text: str) -> None:
    with pytest.raises(ConfigurationError):
        read_signers(text)


def test_the_manifest_is_json_that_anyone_can_read() -> None:
    data = by_hand.whole()
    size = int.from_bytes(data[29:33], "big")
    manifest = json.loads(data[33 : 33 + size])
    assert [one["kind"] for one in manifest["entries"]] == [row[0] for row in by_hand.ROWS]


def _private_key() -> str:
    seed = base64.b64encode(b"\x01" + by_hand.SEED).decode()
    return f"PRIVATE+KEY+{by_hand.SIGNER}+{by_hand.key_id(by_hand.SIGNER, by_hand.SEED).hex()}+{seed}"
