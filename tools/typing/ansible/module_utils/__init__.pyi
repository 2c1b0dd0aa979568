# See the file above: only alembic_recovery is typed.
from typing import Any

def __getattr__(name: str) -> Any: ...
