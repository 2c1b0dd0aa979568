"""What the modules of alembic-recovery share: layered, typed, and free of Ansible below `arguments`."""
