"""`hermetic bench attest`: what attestation costs, from the challenge to the key, and from a revocation to the wipe.

run.py        the measurements, on one installation
guest.py      a guest whose evidence is made quickly: by a key of the AK CA's, with what a real TPM has quoted
caller.py     a process of such guests, for the rate
report.py     the table
renewals.py   `hermetic bench renewals`: p99 of traffic with the renewal of a lease, and without
"""
