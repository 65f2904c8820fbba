"""Keep a seeded sample of the mutants that wait in a session of cosmic-ray; the others are skipped.

python tests/support/sample_mutants.py build/mutants.sqlite 60 0
"""

from __future__ import annotations

import random
import sqlite3
import sys
from contextlib import closing


def keep(session: str, count: int, seed: int) -> int:
    """Leave `count` of the mutants that were not run yet; returns how many that are."""
    with closing(sqlite3.connect(session)) as database, database:
        waiting = database.execute(
            "SELECT job_id FROM work_items WHERE job_id NOT IN "
            "(SELECT job_id FROM work_results) ORDER BY job_id"
        ).fetchall()
        # Their ids are random: sort by what they change.
        place = "SELECT module_path, operator_name, occurrence FROM mutation_specs WHERE job_id = ?"
        waiting.sort(key=lambda row: database.execute(place, row).fetchone())
        random.Random(seed).shuffle(waiting)
        for table in ("mutation_specs", "work_items"):
            database.executemany(f"DELETE FROM {table} WHERE job_id = ?", waiting[count:])
        return len(waiting[:count])


if __name__ == "__main__":
    print(keep(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])), "mutants are left")
