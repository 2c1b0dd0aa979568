"""Tests against containers, and what they share with the Molecule scenarios."""
