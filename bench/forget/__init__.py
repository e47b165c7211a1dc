"""Does a whole server forget? Canaries in, a moment, and every readable byte of its processes searched."""
