"""What a caller imports: connect over mutual TLS, infer."""
