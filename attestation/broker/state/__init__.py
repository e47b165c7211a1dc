"""What broker processes share (docs/spec/broker-state.md): the ledger of decisions, and where it lies.

ledger.py     Ledger: the one interface
folder.py     FolderLedger: a log's folder, for one process
"""
