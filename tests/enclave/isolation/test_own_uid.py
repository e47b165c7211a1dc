"""Uids that nobody else on this host has."""

import os

import pytest

from hermetic.enclave.isolation.own_uid import OwnUid


def test_no_two_holders_have_one() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives uids")
    base = 1_000_000 + os.getpid()
    one, other = OwnUid(base), OwnUid(base)
    assert (one.number, other.number) == (base, base + 1)
    one.give_back()
    one.give_back()
    again = OwnUid(base)
    assert again.number == base
    for holder in (other, again):
        holder.give_back()
