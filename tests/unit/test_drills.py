"""Every drill has a test, or a reason."""

from __future__ import annotations

import re
from pathlib import Path

from tests.drills.catalogue import DRILLS, ELSEWHERE

HERE = Path(__file__).parent.parent / "drills"


def test_no_drill_is_left_out_silently() -> None:
    tested = {
        int(number)
        for module in HERE.glob("test_*.py")
        for number in re.findall(r"@pytest\.mark\.drill\((\d+)\)", module.read_text(encoding="utf-8"))
    }
    assert list(DRILLS) == list(range(1, 47))
    assert tested | set(ELSEWHERE) == set(DRILLS)
    assert not tested & set(ELSEWHERE), "a drill that runs here is no longer elsewhere"
