"""Evidence made, checked, and exchanged for keys."""
