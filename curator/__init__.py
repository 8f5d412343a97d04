"""Forward-only training-data valuation with a vector index: which samples help a behaviour, which hurt it, and why."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from curator.service import Curator

__all__ = ["Curator", "__version__"]
__version__ = "0.1.0"

# Read when OpenMP starts, so before torch: threads that spin while they wait slow a shared machine down 4 times.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def __getattr__(name: str) -> Any:
    # `import curator` stays light: torch is imported with the first use of Curator.
    if name == "Curator":
        from curator.service import Curator

        return Curator
    raise AttributeError(f"module 'curator' has no attribute {name!r}")
