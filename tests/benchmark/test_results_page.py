from benchmarks.results_page import Table, make_page


def test_a_page_has_facts_tables_and_notes() -> None:
    table = Table("Times", ("case", "seconds"), [("one", "1.0")], note="A note.")
    page = make_page("Recovery", {"cores": "2"}, [table, Table("Empty", ("a",))])
    assert page.splitlines() == [
        "# Recovery", "",
        "- cores: 2", "",
        "## Times", "",
        "| case | seconds |", "|---|---:|", "| one | 1.0 |", "",
        "A note.", "",
        "## Empty", "",
        "| a |", "|---|",
    ]  # fmt: skip
