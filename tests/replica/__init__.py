"""Tests of the replica: that it breaks as production did, and works when it is healthy."""
