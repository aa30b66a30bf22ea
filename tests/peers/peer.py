"""Other projects' code for comparison, as `make peers` installed it apart from ours."""

import sys
import types
from pathlib import Path
from typing import Any

PEERS = Path(__file__).resolve().parents[2] / ".cache/peers/extract"
sys.path.append(str(PEERS))

# cc2dataset's module imports Spark (400 MB), which the function that is compared never calls.
for _name in ("pyspark", "pyspark.sql", "pyspark.sql.functions"):
    _module: Any = types.ModuleType(_name)
    _module.SparkContext = _module.SparkSession = _module.rand = None
    sys.modules.setdefault(_name, _module)

from cc2dataset.main import extract_documents_from_wat  # noqa: E402

__all__ = ["PEERS", "extract_documents_from_wat"]
