"""A process with a pair of keys, as a worker has it; it goes on a step for each line that it reads.

    hybrid_key_holder.py [kept]
It says the seed with every bit turned, so that whoever looks knows what to look for. `kept`: it also keeps a copy
in ordinary memory, for the control.
"""

import json
import sys

from hermetic.attestation.key_memory import KeyMemory
from hermetic.enclave.attested_key import KEY_MEMORY_BYTES, AttestedKey


def step(**facts: object) -> str:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()
    return sys.stdin.readline().strip()


def main() -> None:
    memory = KeyMemory(KEY_MEMORY_BYTES)
    key = AttestedKey(memory)
    seed = key._seed
    if seed is None:
        return
    kept = bytearray(seed) if "kept" in sys.argv else bytearray()
    turned = [byte ^ 0xFF for byte in seed]
    message = step(turned=turned, hybrid=key.hybrid_key, jwk=key.public_jwk, kind=memory.kind)
    del seed
    key.open(message.encode()).release()
    step(at="opened")
    key.wipe()
    step(at="wiped", kept=len(kept))


if __name__ == "__main__":
    main()
