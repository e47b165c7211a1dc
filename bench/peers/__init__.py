"""How does Hermetic compare with other v2 servers? They are installed on demand, and measured beside it in one run."""
