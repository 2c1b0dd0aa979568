"""A small song service: a JSON API with a page of its own, and a worker."""
