"""Each verdict and each trap, produced by real Alembic on a real PostgreSQL."""
