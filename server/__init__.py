"""Supervisor and front ends: mutual TLS, identity, access, audit, queues, the v2 API.

Never holds a model or a model key.
"""
