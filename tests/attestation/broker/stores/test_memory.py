"""What a broker process keeps of the keys that it releases, whichever KEK wraps them: nothing that a scan finds."""

import os
from pathlib import Path

import pytest

from tests.attestation.broker.stores.softhsm import PIN
from tests.attestation.broker.test_process import FORGETS_TO_WIPE, NO_SECRET_MEMORY, found_in, released, served
from tests.attestation.broker.world import World

FORGETS_BYTES_TOO = f"""
{NO_SECRET_MEMORY}
key_memory.wipe_bytes_that_nobody_else_holds = lambda secret: kept.append(secret)
"""


# What a KEK of the broker's own leaves is test_process.py's question.
IN_A_TOKEN_OR_SERVICE = pytest.mark.parametrize("kek_line", ["pkcs11", "openbao"], indirect=True)


def configured(world: World, line: str) -> None:
    world.write_config(change={'kek = "file:elsewhere/kek"': f'kek = "{line}"'})


@IN_A_TOKEN_OR_SERVICE
def test_a_released_key_is_not_in_the_brokers_memory(world: World, kek_line: str) -> None:
    """Raw, in hex, in base64; nor are the PIN and the token, which are read when they are needed."""
    configured(world, kek_line)
    key = os.urandom(32)
    with served(world) as broker:
        if broker.facts["zeroing"] != "enforced":
            pytest.skip("this host's allocator does not overwrite freed memory")
        released(world, broker, key)
        assert found_in(broker, key) == 0
        if kek_line.startswith("pkcs11:"):
            assert found_in(broker, PIN.encode()) == 0
        if kek_line.startswith("openbao:"):
            token = Path(kek_line.split("token-source=file:")[1].split("&", maxsplit=1)[0]).read_text().strip()
            assert found_in(broker, token.encode()) == 0


@IN_A_TOKEN_OR_SERVICE
def test_the_scan_would_find_a_key_that_is_not_wiped(world: World, kek_line: str) -> None:
    """Without the wipe, and in memory that can be read: each kind of KEK leaves the key somewhere."""
    configured(world, kek_line)
    key = os.urandom(32)
    with served(world, FORGETS_TO_WIPE.format(more=FORGETS_BYTES_TOO)) as broker:
        released(world, broker, key)
        assert found_in(broker, key) >= 2
