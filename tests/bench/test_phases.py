"""What bench.phases makes of a search's stamps."""

from bench.phases import PHASES, WITHOUT_BRACKET, durations, table


def test_durations_end_with_the_last_stamp():
    assert durations([10, 15, 35, 0, 0]) == [5, 20]
    assert durations([10]) == [] and durations([0, 0]) == []


def test_clocks_become_shares_of_the_whole():
    usual, with_more = [1, 1, 1, 1, 4, 1, 1, 0], [1, 1, 1, 1, 4, 1, 1, 0, 10]
    lines = table({"one": [usual, usual, [9] * 8], "more": [with_more]}, {"one": 50.0, "more": 40.0}).splitlines()
    assert lines[:2] == ["| | one | more |", "|---|---:|---:|"]
    assert lines[2 + PHASES.index("sweep")] == "| sweep | 20.0 | 8.0 |"
    assert lines[-2:] == ["| further phase 1 |  | 20.0 |", "| all | 50.0 | 40.0 |"]


def test_a_short_vector_has_fewer_phases():
    lines = table({"one": [[1, 2, 3, 4, 5]]}, {"one": 30.0}).splitlines()
    durations_of = zip(WITHOUT_BRACKET, ("2.0", "4.0", "6.0", "8.0", "10.0"), strict=True)
    assert lines[2:] == [*(f"| {name} | {time} |" for name, time in durations_of), "| all | 30.0 |"]
