"""How is the server under test started? By the demo's stage: a whole installation, thrown away afterwards."""
