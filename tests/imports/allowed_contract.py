"""A contract type for import-linter: of one part of the package, the importers may import what is listed, nothing else.

Its own types state what is forbidden; a room's border reads better, and fails closed, as the list of what is allowed.
Only direct imports count: what a neighbour imports in turn is its own contract's business.
"""

import grimp
from importlinter import Contract, ContractCheck, fields, output


class AllowedContract(Contract):
    """Of the modules below `within`, modules below `importers` import only those below `allowed`."""

    type_name = "allowed"

    importers = fields.ListField(subfield=fields.StringField())
    within = fields.ListField(subfield=fields.StringField())
    allowed = fields.ListField(subfield=fields.StringField())

    def check(self, graph: grimp.ImportGraph, verbose: bool) -> ContractCheck:
        """Find every direct import that leaves the list."""
        _ = verbose
        broken = [
            (importer, imported)
            for importer in sorted(_below(graph, self.importers))
            for imported in sorted(graph.find_modules_directly_imported_by(importer))
            if _lies_in(imported, self.within) and not _lies_in(imported, self.allowed)
        ]
        lines = [
            f"{importer} imports {imported} (line {detail['line_number']}: {detail['line_contents']})"
            for importer, imported in broken
            for detail in graph.get_import_details(importer=importer, imported=imported)
        ]
        return ContractCheck(kept=not broken, metadata={"lines": lines})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Print each import that is not allowed, with its line."""
        for line in check.metadata["lines"]:
            output.print_error(line, bold=False)


def _below(graph: grimp.ImportGraph, packages: object) -> set[str]:
    return {module for module in graph.modules if _lies_in(module, packages)}


def _lies_in(module: str, packages: object) -> bool:
    if not isinstance(packages, list):
        raise TypeError(f"expected a list of packages, got {packages!r}")
    return any(module == package or module.startswith(f"{package}.") for package in packages)
