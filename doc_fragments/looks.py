"""The contract of the modules that look, and never change anything."""

from __future__ import annotations


class ModuleDocFragment:
    """`looks` for every module of which the attributes below are true."""

    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    support: full
    description: This module only looks.
  diff_mode:
    support: none
    description: Nothing changes.
  idempotent:
    support: full
    description: This module only looks.
"""
