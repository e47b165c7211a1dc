"""Floods: what one bad client does to a good one. Attacks by hand, a good client, and the numbers of both."""
