"""What a bot sets once it is ready, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

SET = """
import gc, sys
from app.responsive import stay_responsive
class Ring: pass
ring = Ring(); ring.itself = ring
stay_responsive()
print(gc.isenabled(), gc.get_freeze_count() > 1000, gc.get_threshold()[2] >= 100, sys.getswitchinterval() <= 0.001)
del ring
later = Ring(); later.itself = later
del later
print(gc.collect() > 0)
"""


def test_what_is_there_is_looked_at_no_more_and_what_comes_later_is_still_collected() -> None:
    found = subprocess.run([sys.executable, "-c", SET], capture_output=True, text=True, check=True)

    assert found.stdout.split() == ["True"] * 5
