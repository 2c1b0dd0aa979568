"""Tests: unit (pure), integration (real parts on this machine), playbooks (whole runs), replica."""
