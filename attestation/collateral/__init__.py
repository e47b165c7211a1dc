"""Collateral without the internet: what vendors sign about their hardware, carried in as one signed bundle.

In the order of use: `recognise` (files of vendors -> items), `bundle` (items <-> one signed file), `vouching` (a
vendor's root stands behind each item), `folder` (imported, loaded, watched), `trust` (what verifiers are given),
`windows` (when to warn, how much grace), `status` and `machines` (what ends when, and whom that stops), `shortfall`
(which SVN is short), `metrics`. Format and rules: docs/spec/collateral-bundle.md. Nothing here fetches anything.
"""

from hermetic.attestation.collateral.bundle import Bundle, pack, read_signers
from hermetic.attestation.collateral.folder import Imported, Loaded, WatchedFolder, import_bundle, load_folder
from hermetic.attestation.collateral.items import Item
from hermetic.attestation.collateral.machines import Inventory, Machine, of_evidence
from hermetic.attestation.collateral.recognise import holds_only_roots, newest, recognise
from hermetic.attestation.collateral.status import Status, status
from hermetic.attestation.collateral.trust import check_items, trust, vendor_roots
from hermetic.attestation.collateral.windows import Windows

__all__ = [
    "Bundle",
    "Imported",
    "Inventory",
    "Item",
    "Loaded",
    "Machine",
    "Status",
    "WatchedFolder",
    "Windows",
    "check_items",
    "holds_only_roots",
    "import_bundle",
    "load_folder",
    "newest",
    "of_evidence",
    "pack",
    "read_signers",
    "recognise",
    "status",
    "trust",
    "vendor_roots",
]
