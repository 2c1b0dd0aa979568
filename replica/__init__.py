"""A small production of our own that breaks exactly as the one of 2025-10-21 did.

The same application (``song_api``) comes in two forms: ``host`` (supervised processes with an embedded
PostgreSQL, no Docker and no root needed) and ``docker`` (containers named as in production).
"""
