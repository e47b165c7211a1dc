"""The documents hold: links lead somewhere, commands exist, decisions are numbered, formats have their vectors."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
ELSEWHERE = ("https://", "http://", "mailto:")


def _documents() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z", "*.md"], cwd=ROOT, check=True, capture_output=True, text=True)
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


def test_every_link_leads_somewhere() -> None:
    astray = []
    for document in _documents():
        text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
        targets = [target for target in LINK.findall(text) if not target.startswith(ELSEWHERE)]
        astray += [(document, target) for target in targets if not (document.parent / target).exists()]
    assert astray == []


def test_every_make_command_that_is_documented_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in _documents():
        named = set(re.findall(r"(?:^|`)make ([a-z-]+)\b", document.read_text(), re.MULTILINE))
        assert named <= targets, document


def test_decisions_are_numbered_once_and_dated() -> None:
    decisions = [path for path in sorted((ROOT / "docs/adr").glob("*.md")) if path.name != "template.md"]
    numbers = [path.name[:4] for path in decisions]
    assert len(numbers) == len(set(numbers))
    for path in decisions:
        assert path.read_text().startswith(f"# {path.name[:4]}"), path


def test_the_readme_is_one_screen() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 50
