"""The vectors of docs/spec/collateral-bundle.md, made without the code that reads them.

    python -m tests.vectors.collateral.generate      writes *.bundle and signers beside itself

The items are recorded ones (tests/vectors/{snp,tdx}/README.md says where from). The key is no secret: its seed is the
bytes 0 to 31. A refused bundle is called after the check that fails; behind "--" stands what was done to it.
"""

from pathlib import Path

from tests.attestation.collateral.by_hand import (
    FORGED_VCEK,
    IDENTITY,
    PCK_CA,
    PCK_CRL,
    ROOT_CRL,
    ROWS,
    STRANGER,
    STRANGER_SEED,
    TCB_INFO,
    VCEK,
    bundle,
    contents,
    entries,
    manifest,
    verifier_line,
    whole,
)

HERE = Path(__file__).parent


def made() -> dict[str, bytes]:
    """Every vector by its name."""
    good = whole()
    listed = entries()
    written = manifest(listed)
    swapped = contents()
    swapped[0], swapped[2] = swapped[2], swapped[0]
    flipped = contents()
    flipped[6] = flipped[6][:-1] + bytes([flipped[6][-1] ^ 1])
    longer = [dict(one) for one in listed]
    longer[3]["size"] -= 1
    other_subject = [*listed[:6], listed[6] | {"subject": listed[6]["subject"].replace("10.0", "11.0")}]
    later_end = [*listed[:5], listed[5] | {"valid-until": "2027-04-15T22:06:09Z"}, listed[6]]
    as_another_kind = [PCK_CRL, IDENTITY, ROOT_CRL, *ROWS[3:6], ("vlek", *VCEK[1:])]
    path = [*listed[:6], listed[6] | {"kind": "../vcek"}]
    return {
        "accepted": good,
        "bundle.structure--truncated-head": good[:20],
        "bundle.structure--other-format": good.replace(b"bundle/1\n", b"bundle/2\n", 1),
        "bundle.structure--manifest-larger-than-the-file": good[:29] + b"\x00\x3f\xff\xff" + good[33:],
        "bundle.structure--manifest-over-the-limit": good[:29] + b"\xff\xff\xff\xff" + good[33:],
        "bundle.signature--other-signer": whole(name=STRANGER, seed=STRANGER_SEED),
        "bundle.signature--other-key-under-the-name": whole(seed=STRANGER_SEED),
        "bundle.signature--of-another-manifest": bundle(written, contents(), signed=manifest(listed[:-1])),
        "bundle.manifest--reordered": bundle(manifest(listed[::-1]), contents()[::-1]),
        "bundle.manifest--twice": bundle(manifest([*listed, listed[6]]), [*contents(), VCEK[4]]),
        "bundle.manifest--kind-is-a-path": bundle(manifest(path), contents()),
        "bundle.manifest--not-canonical": bundle(written.replace(b'","', b'", "', 1), contents()),
        "bundle.manifest--number-zero": bundle(manifest(listed, 0), contents()),
        "bundle.manifest--unknown-member": bundle(manifest([listed[0] | {"path": "/etc/passwd"}]), contents()[:1]),
        "bundle.contents--truncated": good[:-1],
        "bundle.contents--more-behind": good + b"\0",
        "bundle.contents--item-larger-than-its-size": bundle(manifest(longer), contents()),
        "item.digest--swapped": bundle(written, swapped),
        "item.digest--flipped": bundle(written, flipped),
        "item.structure--another-kind": whole(as_another_kind),
        "item.subject--higher-tcb": bundle(manifest(other_subject), contents()),
        "item.period--later-end": bundle(manifest(later_end), contents()),
        "item.vouched--forged-vcek": whole([*ROWS[:6], FORGED_VCEK]),
        "item.vouched--chain-left-out": whole([one for one in ROWS if one is not PCK_CA]),
        "item.complete--tcb-info-alone": whole([ROWS[4], TCB_INFO, VCEK]),
    }  # fmt: skip


if __name__ == "__main__":
    (HERE / "signers").write_text(f"# The key of these vectors.\n{verifier_line()}\n")
    for name, data in made().items():
        (HERE / f"{name}.bundle").write_bytes(data)
