# ansible-core ships no types. This makes `ansible` a package that holds our own module_utils, as on a target,
# and anything else as Any.
from typing import Any

def __getattr__(name: str) -> Any: ...
