"""Run a module of `library/` in a process of its own: arguments as JSON on standard input, the result on the output.

Usage: python -m tests.faults.run_module NAME [--check]
"""

from __future__ import annotations

import json
import resource
import sys

from tests import conftest  # noqa: F401  (makes the modules importable)
from tests.support.modules import run_module


def main() -> None:
    """Run it, and add the most memory that this process has had (`peak_kib`)."""
    result = run_module(sys.argv[1], json.loads(sys.stdin.read()), check="--check" in sys.argv[2:])
    result["peak_kib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main()
