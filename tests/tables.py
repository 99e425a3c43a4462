"""What a table of HTML says."""

from xml.etree import ElementTree


def cells(markup: str) -> list[list[str]]:
    """The rows of the tables, heads excepted."""
    rows = (row.findall("td") for row in ElementTree.fromstring(markup).iter("tr"))
    return [[cell.text or "" for cell in row] for row in rows if row]
