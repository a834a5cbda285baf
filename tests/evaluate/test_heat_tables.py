"""Heat maps: every cell by hand."""

from helpers.runs import forgetting_results

from uniaudio.evaluate.forgetting import ScoreMatrix, build_forgetting_table
from uniaudio.evaluate.routing import build_routing_tables


def test_routes_are_shaded_against_the_largest_share():
    routes = {
        "from_step": 3,
        "to_step": 9,
        "groups": {"gate": {"asr": {"w": 0.5, "d": 0.25}, "tag": {"w": 0.1}}},
        "values": {},
    }
    (table,) = build_routing_tables(routes)
    assert table.columns == ["w", "d"]
    assert [(name, [(c.text, c.shade) for c in cells]) for name, cells in table.rows] == [
        ("asr", [("0.50", 1.0), ("0.25", 0.5)]),
        ("tag", [("0.10", 0.2), ("0.00", 0.0)]),
    ]


def test_forgetting_says_gain_and_loss_in_words_and_frames_what_was_learned():
    matrix = ScoreMatrix.from_json(forgetting_results()["probe/linear"])
    table = build_forgetting_table("linear", matrix)
    rows = dict(table.rows)
    assert [c.text for c in rows["speech"]] == ["0.900 (+40.0)", "0.750 (-5.0)", "0.900 (+0.0)"]
    assert [c.text for c in rows["sounds"]] == ["0.850 (+35.0)", "0.880 (+8.0)", "–"]
    assert [(c.kind, round(c.shade, 2)) for c in rows["speech"][:2]] == [("gain", 1.0), ("loss", 0.5)]
    assert [(stage, i) for stage, cells in table.rows for i, c in enumerate(cells) if c.framed] == [
        ("speech", 0),
        ("sounds", 1),
    ]
