from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from hermetic.attestation.claims import Claims, HermeticClaims, MeasuredCode, SampleClaims, TpmClaims
from hermetic.attestation.policy import AppraisalPolicy, appraise, choose
from hermetic.attestation.policy.form import MAX_POLICY_SIZE
from hermetic.errors import AppraisalError, ConfigurationError, InvalidRequestError

FORMS = Path(__file__).parents[2] / "vectors" / "appraisal-policy"
PRODUCTION = AppraisalPolicy.load((FORMS / "production.toml").read_bytes())
DEMO = AppraisalPolicy.load((FORMS / "demo.toml").read_bytes())
DEMO_SAMPLE = AppraisalPolicy.load((FORMS / "demo-sample.toml").read_bytes())

NOW = datetime(2026, 11, 23, tzinfo=UTC)
A, B, D, F = ("a" * 64, "b" * 64, "d" * 64, "f" * 64)
MANIFEST = "e" * 64
CODE = MeasuredCode(by="verity-command-line", root_hashes=(D,), rests_on=(0, 2, 4, 8, 9))
TPM = TpmClaims(
    checks=("tpm.structure",),
    software=False,
    enrolled="certificate",
    ak_name="00" * 34,
    ak_spki=F,
    ek=B,
    reset_count=1,
    restart_count=0,
    firmware_version="0000000000000001",
    clock_safe=True,
    pcrs={str(i): str(i)[-1] * 64 for i in range(24)},
    boot_log=True,
    secure_boot=True,
    measured_code=CODE,
    log_pcr=14,
    log_base="0" * 64,
    manifests=(MANIFEST,),
)
HERMETIC = HermeticClaims(
    profile="production",
    manifest_digest=MANIFEST,
    waivers=(),
    trusted_publishers=A,
    zeroing="enforced",
)
GOOD = Claims(kinds=(TPM,), hermetic=HERMETIC, client="spiffe://bank/gpu-7")


def tpm(**changes: Any) -> Claims:
    return GOOD.model_copy(update={"kinds": (TPM.model_copy(update=changes),)})


def hermetic(**changes: Any) -> Claims:
    return GOOD.model_copy(update={"hermetic": HERMETIC.model_copy(update=changes)})


def form(**changes: Any) -> AppraisalPolicy:
    return PRODUCTION.model_copy(update=changes)


def tpm_form(**changes: Any) -> AppraisalPolicy:
    assert PRODUCTION.tpm is not None
    return form(tpm=PRODUCTION.tpm.model_copy(update=changes))


def hermetic_form(**changes: Any) -> AppraisalPolicy:
    return form(hermetic=PRODUCTION.hermetic.model_copy(update=changes))


@pytest.mark.parametrize("path", sorted(FORMS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_form_in_the_vectors_is_accepted_or_refused_as_it_says(path: Path) -> None:
    verdict = path.read_text().splitlines()[0].removeprefix("# ")
    if verdict == "accepted":
        AppraisalPolicy.load(path.read_text())
        return
    with pytest.raises(ConfigurationError) as refused:
        AppraisalPolicy.load(path.read_text())
    assert verdict.removeprefix("refused: ") in str(refused.value)


def test_good_claims_are_accepted_with_every_rule_named() -> None:
    appraisal = appraise(GOOD, PRODUCTION, NOW)
    assert appraisal.claims is GOOD
    assert appraisal.policy == "fraud-production"
    assert appraisal.warnings == ()
    assert set(appraisal.checks) == {
        "kinds.tpm", "kinds", "kinds.distinct", "kinds.sample", "tpm.debug", "client_certificate",
        "hermetic.required", "hermetic.profile", "hermetic.trusted_publishers", "hermetic.waivers", "hermetic.zeroing",
        "tpm.software", "tpm.enrolled", "tpm.ek", "tpm.pcrs.0", "tpm.pcrs.4", "tpm.pcrs.8", "tpm.pcrs.9",
        "tpm.secure_boot", "tpm.code_measured", "tpm.code_pinned", "tpm.root_hashes", "tpm.log_base", "tpm.manifests",
    }  # fmt: skip


SAMPLE = SampleClaims(checks=(), svn="1")
BOTH_DEMO = DEMO.model_copy(update={"kinds": ("tpm", "sample")})
REFUSALS = [
    ("no evidence of the kind", GOOD.model_copy(update={"kinds": (SampleClaims(checks=(), svn="1"),)}), PRODUCTION,
     {"kinds.tpm", "kinds", "kinds.sample"}),
    ("a kind too many", GOOD.joined(Claims(kinds=(SampleClaims(checks=(), svn="1"),))), PRODUCTION,
     {"kinds", "kinds.sample"}),
    ("a kind missing", GOOD.model_copy(update={"kinds": (SAMPLE,)}), BOTH_DEMO, {"kinds.tpm"}),
    ("a kind that nobody asked for", GOOD.joined(Claims(kinds=(SAMPLE,))), DEMO, {"kinds"}),
    ("a sample in production", GOOD.joined(Claims(kinds=(SAMPLE,))), form(kinds=("tpm", "sample")), {"kinds.sample"}),
    ("a provisioned AK alone", tpm(enrolled="provisioned", ek=None), tpm_form(ek="any"), {"tpm.enrolled"}),
    ("a kind twice", GOOD.joined(Claims(kinds=(TPM,))), PRODUCTION, {"kinds.distinct"}),
    ("a debug mode", tpm(debug=True), PRODUCTION, {"tpm.debug"}),
    ("no client certificate", GOOD.with_client(None), PRODUCTION, {"client_certificate"}),
    ("another client", GOOD, form(client_certificate=("spiffe://bank/gpu-8",)), {"client_certificate"}),
    ("no runtime data", GOOD.with_hermetic(None), PRODUCTION, {"hermetic.required"}),
    ("a demo guest", hermetic(profile="demo"), PRODUCTION, {"hermetic.profile"}),
    ("another manifest", GOOD, hermetic_form(manifest_digest=(F,)), {"hermetic.manifest_digest"}),
    ("other publishers", hermetic(trusted_publishers=F), PRODUCTION, {"hermetic.trusted_publishers"}),
    ("publishers unsaid", hermetic(trusted_publishers=None), PRODUCTION, {"hermetic.trusted_publishers"}),
    ("a waiver", hermetic(waivers=("no_network",)), PRODUCTION, {"hermetic.waivers"}),
    ("one waiver of two", hermetic(waivers=("a", "b")), hermetic_form(waivers=("a",)), {"hermetic.waivers"}),
    ("waivers unsaid", hermetic(waivers=None), PRODUCTION, {"hermetic.waivers"}),
    ("best effort zeroing", hermetic(zeroing="best effort"), PRODUCTION, {"hermetic.zeroing"}),
    ("zeroing unsaid", hermetic(zeroing=None), PRODUCTION, {"hermetic.zeroing"}),
    ("a software TPM", tpm(software=True), PRODUCTION, {"tpm.software"}),
    ("a provisioned AK", tpm(enrolled="provisioned", ek=None), PRODUCTION, {"tpm.enrolled", "tpm.ek"}),
    ("another machine", tpm(ek=F), PRODUCTION, {"tpm.ek"}),
    ("another loader", tpm(pcrs={**TPM.pcrs, "4": F}), PRODUCTION, {"tpm.pcrs.4"}),
    ("an unquoted PCR", tpm(pcrs={i: v for i, v in TPM.pcrs.items() if i != "4"}), PRODUCTION, {"tpm.pcrs.4"}),
    ("secure boot off", tpm(secure_boot=False), PRODUCTION, {"tpm.secure_boot"}),
    ("secure boot unsaid", tpm(secure_boot=None), PRODUCTION, {"tpm.secure_boot"}),
    ("code not measured", tpm(measured_code=None), PRODUCTION, {"tpm.code_measured"}),
    ("code not pinned", GOOD, tpm_form(pcrs={"4": ("4" * 64,)}), {"tpm.code_pinned"}),
    ("another root hash", GOOD, tpm_form(root_hashes=(F,)), {"tpm.root_hashes"}),
    ("no root hash", tpm(measured_code=CODE.model_copy(update={"root_hashes": ()})), PRODUCTION, {"tpm.root_hashes"}),
    ("another base of the log", tpm(log_base=F), PRODUCTION, {"tpm.log_base"}),
    ("a manifest that was not measured", tpm(manifests=(F,)), PRODUCTION, {"tpm.manifests"}),
    ("no manifest", hermetic(manifest_digest=None), PRODUCTION, {"tpm.manifests"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("claims", "against", "names"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS]
)
def test_each_rule_refuses_alone(claims: Claims, against: AppraisalPolicy, names: set[str]) -> None:
    with pytest.raises(AppraisalError) as refused:
        appraise(claims, against, NOW)
    assert {check.name for check in refused.value.failures} == names
    assert all(check.wanted and check.got for check in refused.value.failures)


def test_every_rule_has_a_row() -> None:
    shown = set().union(*(row[3] for row in REFUSALS))
    every = set(appraise(GOOD, hermetic_form(manifest_digest=(MANIFEST,)), NOW).checks)
    unnumbered = {name for name in every if not name.startswith("tpm.pcrs.")} | {"tpm.pcrs.4"}
    assert unnumbered <= shown


def test_all_failures_come_together_naming_wanted_and_got() -> None:
    bad = tpm(ek=F, secure_boot=False, manifests=()).with_client(None)
    with pytest.raises(AppraisalError) as refused:
        appraise(bad, PRODUCTION, NOW)
    assert {c.name for c in refused.value.failures} == {
        "client_certificate", "tpm.ek", "tpm.secure_boot", "tpm.manifests"
    }  # fmt: skip
    assert f"tpm.ek: wanted [{B}], got {F}" in str(refused.value)


def test_a_demo_accepts_knowingly_and_says_what() -> None:
    claims = Claims(
        kinds=(TPM.model_copy(update={"software": True, "measured_code": None}),),
        hermetic=HERMETIC.model_copy(update={"profile": "demo", "waivers": ("no_network",), "zeroing": "best effort"}),
        client="CN=demo",
    )
    assert set(appraise(claims, DEMO, NOW).warnings) == {
        "code not measured", "software TPM", "demo profile", "zeroing best effort", "isolation waived"
    }  # fmt: skip


def test_sample_evidence_passes_a_demo_form_only() -> None:
    claims = GOOD.model_copy(update={"kinds": (SampleClaims(checks=(), svn="1"),)})
    assert "sample evidence proves nothing" in appraise(claims, DEMO_SAMPLE, NOW).warnings


def test_a_serving_key_needs_no_manifest() -> None:
    claims = hermetic(purpose="serving-key", manifest_digest=None)
    appraise(claims, hermetic_form(manifest_digest=(F,)), NOW)


def test_runtime_data_travels_with_hyphens_and_refuses_strangers() -> None:
    wire: dict[str, Any] = {
        "profile": "demo", "manifest-digest": MANIFEST, "waivers": [], "trusted-publishers": A, "policies": [],
        "log-head": None, "zeroing": "enforced", "zeroing-by": "glibc-tunables", "purpose": "model",
    }  # fmt: skip
    claims = GOOD.with_hermetic(wire)
    assert claims.hermetic is not None
    assert claims.to_json()["hermetic"] == {**wire, "lease-key": None, "hybrid-key": None}
    assert Claims.parse(claims.to_json()) == claims
    for wrong in ({**wire, "extra": 1}, {**wire, "manifest-digest": "xy"}, {**wire, "profile": "test"}):
        with pytest.raises(InvalidRequestError, match="expected HermeticClaims, got members that do not fit"):
            GOOD.with_hermetic(wrong)


def test_the_best_fitting_form_is_chosen() -> None:
    exact = form(name="exact", models=("fraud-eu",))
    anyone = form(name="anyone", models=("*",))
    policies = [anyone, PRODUCTION, exact]
    assert choose(policies, "fraud-eu") is exact
    assert choose(policies, "fraud-us") is PRODUCTION
    assert choose(policies, "magika") is anyone


def test_no_form_and_two_equal_forms_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="expected one for model 'magika', got none"):
        choose([PRODUCTION], "magika")
    with pytest.raises(ConfigurationError, match="one best fit"):
        choose([PRODUCTION, form(name="twin")], "fraud-eu")


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("production", "b59f004aa1046d14bc06f15a1873e3c7a9064f8ce3d4000a3920785fe9abbaf4"),
        ("demo", "8405af62f02d193578b87184a99e97eeda3bb1cd1888f14c0ec1c4107e2f96d2"),
    ],
)
def test_a_form_of_old_has_the_digest_that_records_hold(name: str, digest: str) -> None:
    # Tables of other kinds were added later; forms without them are what they were.
    assert AppraisalPolicy.load((FORMS / f"{name}.toml").read_bytes()).digest().hex() == digest


def test_the_digest_is_of_the_meaning_not_of_the_layout() -> None:
    text = (FORMS / "production.toml").read_text()
    assert AppraisalPolicy.load("# a comment\n" + text).digest() == PRODUCTION.digest()
    assert AppraisalPolicy.load(text.replace('"required"', '"any"', 1)).digest() != PRODUCTION.digest()


def test_an_oversize_form_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at most"):
        AppraisalPolicy.load("#" * (MAX_POLICY_SIZE + 1))


def test_a_kind_that_is_no_text_is_refused_as_a_form() -> None:
    toml = (FORMS / "production.toml").read_text()
    with pytest.raises(ConfigurationError, match="kinds"):
        AppraisalPolicy.load(toml.replace('kinds = ["tpm"]', 'kinds = [["tpm"]]'))


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 100_000,
        "a = " + "{ a = " * 40_000,
        ".".join(["a"] * 100_000) + " = 1",
        "[" + ".".join(["a"] * 100_000) + "]",
        "a = " + "1" * 200_000,
        "\0",
    ],
    ids=["lists", "tables", "a key", "a table's name", "a number", "no text"],
)
def test_a_form_that_would_cost_a_reader_dearly_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        AppraisalPolicy.load(text)


def test_marks_in_comments_and_texts_are_no_nesting() -> None:
    text = (FORMS / "production.toml").read_text()
    quiet = "# it's [[[[[[[[[[[[[[[[[[[[[ ..................... \"\n" + text
    assert AppraisalPolicy.load(quiet).digest() == PRODUCTION.digest()
    dotted = AppraisalPolicy.load(text.replace('"fraud-*"', '"......................", "[[[[[[[[[[[[[[[[[[[["'))
    assert len(dotted.models) == len(PRODUCTION.models) + 1
