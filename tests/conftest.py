"""Settings that have to hold before the first test imports torch or matplotlib."""

import os

from hypothesis import settings

# pytest -n runs several processes: one thread each, and none that spins while it waits
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["MPLBACKEND"] = "Agg"

# no deadline: the first example of a test pays for imports; CI draws the same examples every time
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")
