"""Real applications from the package index: each is read at several revisions, and brought to head, with proof."""
