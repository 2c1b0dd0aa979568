"""The faults of backing up, injected for real, and the security points."""

from __future__ import annotations
