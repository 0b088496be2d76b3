"""Any question is SQL over Parquet. `python examples/query_lineage.py [CATALOG]`"""

import sys
from pathlib import Path

from vlm_core.data.lineage.catalog import open_catalog

catalog = open_catalog(Path(sys.argv[1] if len(sys.argv) > 1 else ".platform/catalog"))
print(catalog.sql("SELECT rule, reason, count(*) AS samples FROM decisions WHERE NOT keep GROUP BY ALL ORDER BY samples DESC"))
print(catalog.sql("SELECT name, role, recipe, snapshot_md5 FROM models ORDER BY name"))
