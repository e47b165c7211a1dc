"""What broker processes share (docs/spec/broker-state.md): the ledger of decisions, and short-lived cells.

ledger.py  cells.py              the two interfaces, and cells in memory
folder.py                        a log's folder: the ledger of one process
database.py                      what is needed of a database, and its tables
sqlite.py  postgres.py           the databases
sql_ledger.py  sql_cells.py      ledger and cells in one
opening.py  follower.py          what a configuration names; news of other processes
"""
