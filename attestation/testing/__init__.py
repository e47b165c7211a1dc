"""Fakes and real stand-ins that ship with the product and that every default policy refuses."""
