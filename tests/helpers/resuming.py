"""The property that resuming rests on: from every place of every shard, reading gives the tail of the whole."""

from uniaudio.data.sources.base import Place, Row


def describe_row(row):
    """What can be compared of a row, of None, and of an error."""
    return (row.key, dict(row.columns), row.audio) if isinstance(row, Row) else row and str(row)


def check_places(source):
    """Return the number of rows, kept or not, of every shard."""
    counts = []
    for shard in range(len(source.shards)):
        whole = [(describe_row(row), behind) for row, behind in source.read(shard, Place())]
        assert [behind.row for _, behind in whole] == list(range(1, len(whole) + 1))
        for start, place in enumerate([Place(), *(behind for _, behind in whole)]):
            assert [(describe_row(row), behind) for row, behind in source.read(shard, place)] == whole[start:]
        counts.append(len(whole))
    return counts
