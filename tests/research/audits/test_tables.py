"""The table of audits, from rows written by hand."""

from research.audits.tables import table

ROW = {
    "organism": "DEV2",
    "recipe": "all",
    "way": "audit",
    "seed": 0,
    "spent": 207_672,
    "reads": {"FERRET": 2, "MARMALADE": 3, "PLURAL": None, "WILHELMINA": 1},
    "findings": [{"fires": ["WILHELMINA", "PLURAL"]}, {"fires": []}, {"fires": ["MARMALADE"]}],
}


def cells(row):
    return [cell.strip() for cell in table([row]).splitlines()[-1].strip("|").split("|")]


def test_a_row_tells_what_was_named_where_and_what_only_fired():
    assert cells(ROW) == [
        "DEV2",
        "all",
        "audit",
        "0",
        "207,672",
        "WILHELMINA (1), FERRET (2), MARMALADE (3)",
        "PLURAL",
        "3",
        "PLURAL",
    ]


def test_replies_that_are_read_in_the_place_of_findings_are_counted():
    replies = {**ROW, "reads": {"FERRET": None}, "ordered": 412}
    del replies["findings"]
    assert cells(replies)[-4:] == ["none", "FERRET", "412", "none"]
