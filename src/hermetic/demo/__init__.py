"""`make demo`: a private CA, a broker, a server, three real models; sealed, attested, opened, served, forgotten."""
