"""The file of results: one line for each run of a benchmark, with the versions it ran with."""

import datetime
import importlib.metadata
import json
import os
import platform
from pathlib import Path

RESULTS = Path(__file__).with_name("results.jsonl")


def append_record(benchmark, rows, *, repeats, versions):
    """Append one line.

    Args:
        benchmark: Name of the script.
        rows: Its table, a dict for each row.
        repeats: Number of repeats behind each row.
        versions: Names of the packages whose versions matter.
    """
    record = {
        "benchmark": benchmark,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "python": platform.python_version(),
        "processor": f"{os.cpu_count()} cores, {platform.machine()}",
        "repeats": repeats,
        "versions": {name: importlib.metadata.version(name) for name in versions},
        "rows": rows,
    }
    with RESULTS.open("a") as file:
        file.write(json.dumps(record) + "\n")
