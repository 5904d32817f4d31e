"""The suite's rows: where they are kept, and the three things that a check can say."""

from pathlib import Path

#: A check is passed, or refused with a reason; whatever else happens is wrong.
PASS, REFUSED, WRONG = "pass", "refused: ", "wrong: "
#: File of the committed rows.
ROWS = Path(__file__).parents[1] / "results" / "compatibility" / "rows.json"
