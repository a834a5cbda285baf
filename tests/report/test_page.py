"""The page as a document: what it says, that nothing of its data becomes markup, and that it needs no network."""

import itertools
import json
import re
from html.parser import HTMLParser

import pytest
from helpers.runs import (
    START,
    answers_of,
    folder_results,
    forgetting_results,
    suite_results,
    with_choices,
    write_json,
    write_rows,
    write_run,
    write_weights,
)

from uniaudio.commands.report import Wanted, report_runs
from uniaudio.config.strict_yaml import dump_yaml
from uniaudio.errors import UserError
from uniaudio.report.page import make_environment
from uniaudio.report.result_files import describe_missing_results
from uniaudio.report.run_folder import read_run

HOSTILE = "<script>alert(1)</script><img src=x onerror='alert(2)'>\"'&amp;{{ 7*7 }}</title></style></svg>-->"
VOID = {"meta", "wbr"}  # what has no end; in a drawing the others end themselves


class Document(HTMLParser):
    """All elements with their attributes and the text within, and whether every element is closed in its place."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.open, self.crossed = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "attrs": dict(attrs), "text": ""}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.elements.append({"tag": tag, "attrs": dict(attrs), "text": ""})

    def handle_endtag(self, tag):
        if not self.open or self.open[-1]["tag"] != tag:
            self.crossed.append(tag)
        while self.open and self.open.pop()["tag"] != tag:
            pass

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag):
        return [element for element in self.elements if element["tag"] == tag]


def document(folders, out, **wanted):
    text = report_runs(folders, out, Wanted(**wanted)).read_text(encoding="utf-8")
    page = Document(text)
    assert not page.crossed
    assert not page.open
    return page, text


@pytest.fixture
def two_runs(tmp_path):
    """Two runs with everything: fifty sets, answers, choices, forgetting; the second broke off."""
    sets = [f"set_{i:02d}" for i in range(50)]
    first = write_run(tmp_path / "first", sets)
    second = write_run(tmp_path / "second", sets, seed=1, finished=False, torn='{"step": 401, "lo')
    with_choices(first)
    models = [START, str(first), str(second), f"random:{START}"]
    probes = write_json(tmp_path / "suite.json", suite_results(sets, models))
    labels = {f"{name}:asked": [f"label {i}" for i in range(5)] for name in sets[:3]}
    write_json(first / "answers.json", answers_of(labels, right=0.5))
    write_json(second / "answers.json", answers_of(labels, right=0.95, seed=3))
    write_json(first / "forgetting.json", forgetting_results())
    return [first, second], probes


def test_fifty_sets_and_two_runs(two_runs, tmp_path):
    folders, probes = two_runs
    page, text = document(folders, tmp_path / "r.html", probes=[probes])
    leads = [p["text"] for p in page.all("p") if (p["attrs"].get("class") or "").startswith("lead")]
    assert leads[0].startswith("Of 50 sets compared with encoder, first improved on 25 (most on ")
    assert "and lost on 5 (most on " in leads[0]
    assert leads[1].startswith("Of 53 sets compared with encoder and first, second improved on 3 (most on ")
    assert "second is not finished" in leads[2]
    sections = [h["text"] for h in page.all("h2")]
    assert sections == [
        "What moved",
        "Probes of the frozen encoder",
        "Answers",
        "Wrong answers",
        "Forgetting",
        "Training",
        "Routing",
        "Cost",
        "Data and weights",
        "Config and versions",
    ]
    rows = [th["text"] for th in page.all("th") if th["attrs"]["scope"] == "row"]
    assert all(any(row.startswith(f"set_{i:02d}") for row in rows) for i in range(50))
    assert len(text) < 2_000_000
    links = [a["attrs"]["href"] for a in page.all("a")]
    assert {link.removeprefix("#") for link in links} <= {e["attrs"].get("id") for e in page.elements}


def test_numbers_on_the_page_are_those_of_the_files(two_runs, tmp_path):
    folders, probes = two_runs
    page, _ = document(folders, tmp_path / "r.html", probes=[probes])
    scores = json.loads(probes.read_text())["scores"]
    cells = [td["text"].split() for td in page.all("td")]
    for name in ("set_00", "set_05", "set_49"):
        start, trained = (scores[name][model]["knn"]["mean"] for model in (START, str(folders[0])))
        assert any(f"{trained:.3f}" in cell and f"{trained - start:+.3f}" in cell for cell in cells)


def test_signs_and_words_stand_beside_colours(two_runs, tmp_path):
    folders, probes = two_runs
    page, _ = document(folders, tmp_path / "r.html", probes=[probes])
    coloured = [
        s for s in page.all("span") if s["attrs"].get("class") in ("better", "worse") and "." in s["text"]
    ]
    assert len(coloured) > 100
    for span in coloured:
        sign, words = {"better": ("▲", "better"), "worse": ("▼", "worse")}[span["attrs"]["class"]]
        assert sign in span["text"]
        assert f"significantly {words}" in span["text"]


def test_structure_that_a_screen_reader_needs(two_runs, tmp_path):
    folders, probes = two_runs
    page, _ = document(folders, tmp_path / "r.html", probes=[probes])
    assert page.elements[0]["attrs"]["lang"] == "en"
    levels = [int(e["tag"][1]) for e in page.elements if re.fullmatch("h[1-6]", e["tag"])]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(th["attrs"].get("scope") in ("row", "col") for th in page.all("th"))
    for svg in page.all("svg"):
        assert svg["attrs"].get("aria-hidden") == "true" or len(svg["attrs"]["aria-label"]) > 10
    ids = [e["attrs"]["id"] for e in page.elements if "id" in e["attrs"]]
    assert len(ids) == len(set(ids))


def test_nothing_is_fetched(two_runs, tmp_path):
    folders, probes = two_runs
    page, text = document(folders, tmp_path / "r.html", probes=[probes])
    for element in page.elements:
        for name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            assert element["attrs"].get(name, "#").startswith(("#", "data:audio/mpeg;base64,"))
    assert "url(" not in text
    assert "@import" not in text
    policy = next(m["attrs"]["content"] for m in page.all("meta") if "http-equiv" in m["attrs"])
    assert "default-src 'none'" in policy


def test_hostile_names_stay_text(tmp_path):
    run = write_run(tmp_path / "run<b>", [HOSTILE, f"{HOSTILE}2"], steps=40)
    with_choices(run)
    config = {
        "encoders": {HOSTILE: {"path": HOSTILE}},
        "stages": [{"name": "one", "recipe": HOSTILE, "steps": 40}],
    }
    (run / "config.yaml").write_text(dump_yaml(config))
    write_json(
        run / "probes.json",
        folder_results([HOSTILE, "plain"], [HOSTILE, f"random:{HOSTILE}", f"own {HOSTILE}"]),
    )
    answers = answers_of({HOSTILE: [HOSTILE, "</td>", "<!--"]}, count=30)
    for item in answers[HOSTILE]["answers"]:
        item["id"] = f"{HOSTILE}/{item['id']}"
    answers[HOSTILE]["labels"]["names"] = [HOSTILE]
    write_json(run / "answers.json", answers)
    matrix = forgetting_results()["probe/linear"]
    write_json(run / "forgetting.json", {HOSTILE: {**matrix, "sets": [HOSTILE, "a", "b"]}})
    write_rows(run / "skipped.jsonl", [{"step": 1, "source": HOSTILE, "reason": HOSTILE}])
    questions = [{"clip": HOSTILE, "question": HOSTILE, "answer": HOSTILE, "reference": HOSTILE}]
    page, text = document(
        [run], tmp_path / "r.html", title=HOSTILE, questions=questions, facts={HOSTILE: HOSTILE}
    )
    assert len(page.all("script")) == 1
    assert page.all("img") == []
    assert page.all("b") == [b for b in page.all("b") if "class" not in b["attrs"]]
    assert not [name for e in page.elements for name in e["attrs"] if name.startswith("on")]
    assert "<img" not in text
    assert "49" not in [e["text"] for e in page.all("td")]  # an expression in a name is not worked out
    assert page.all("h1")[0]["text"] == HOSTILE
    assert any(HOSTILE in th["text"] for th in page.all("th"))
    assert any(HOSTILE in pre["text"].replace("''", "'") for pre in page.all("pre"))


def test_an_id_that_is_no_text_is_written_with_escapes(tmp_path):
    """Of a file whose name is in another encoding."""
    run = write_run(tmp_path / "run", ["t"], steps=40)
    answers = answers_of({"tones:tone": ["low", "high"]}, count=2, right=-1.0)
    answers["tones:tone"]["answers"][0]["id"] = "clips/test/caf\udce9.wav"
    write_json(run / "answers.json", answers)
    page, _ = document([run], None)
    assert any("clips/test/caf\\udce9.wav" in cell["text"] for cell in page.all("td"))


def test_a_run_with_nothing_beside_it(tmp_path, capsys):
    run = write_run(tmp_path / "alone", ["only"], steps=40)
    page, _ = document([run], None)
    assert (run / "report.html").is_file()
    (lead,) = [p["text"] for p in page.all("p") if p["attrs"].get("class") == "lead"]
    assert "The loss of alone went from" in lead
    assert "no result compares it with its start" in lead
    assert "Probes of the frozen encoder" not in [h["text"] for h in page.all("h2")]
    notes = [li["text"] for li in page.all("li")]
    assert any(note.startswith("data of alone: ") for note in notes)  # its recipe is nowhere
    missing = f"alone has no probe scores; to add them: uniaudio probe {run} --data NAME=FOLDER --out {run}/probes.json"
    assert missing in notes
    assert capsys.readouterr().err.splitlines() == [missing]


def test_results_that_are_not_stored_are_named_with_their_command(tmp_path):
    runs = [read_run(write_run(tmp_path / name, ["t"], steps=40), name) for name in ("my first", "second")]
    first = f"'{tmp_path}/my first'"
    answers = f"my first has no answers; to add them: uniaudio eval {first} --out {first}/answers.json"
    command = f"uniaudio probe {first} --data NAME=FOLDER --out {first}/probes.json"
    probes = f"my first has no probe scores; to add them: {command}"
    write_json(runs[1].folder / "answers.json", {})
    write_json(runs[1].folder / "probes.json", {})
    both = ["my first", "second"]
    assert describe_missing_results(runs, [], [], both) == [answers, probes]
    assert describe_missing_results(runs, [], [], ["second"]) == [probes]  # the first has no evaluation sets
    assert describe_missing_results(runs, [tmp_path / "p.json"], [], both) == [answers]
    assert describe_missing_results(runs, [], [tmp_path / "a.json"], both) == [probes]


def test_a_run_that_broke_off_before_its_first_row(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"event": "stage", "step": 0, "stage": "one", "proce')
    page, _ = document([tmp_path], None)
    text = page.all("body")[0]["text"]
    assert "has no logged loss yet" in text
    assert (
        "metrics.jsonl records no end after step 0, and the last line of metrics.jsonl is incomplete" in text
    )


def test_runs_with_other_names_in_their_probes_are_distinguished(tmp_path):
    """Both files say "before" and "after": the same start, two runs."""
    folders = []
    prints = []
    for seed, name in enumerate(("a", "b")):
        folders.append(write_run(tmp_path / name, ["t"], steps=40))
        prints.append({"after": write_weights(folders[-1], name.encode())})
        scores = folder_results(["s0", "s1"], ["before", "after"], fingerprints=prints[-1])
        scores["scores"]["s0"]["after"]["linear"]["mean"] += 0.01 * seed
        write_json(folders[-1] / "probes.json", scores)
    page, _ = document(folders, tmp_path / "r.html")
    heads = [th["text"] for th in page.all("th") if th["attrs"]["scope"] == "col"]
    start = heads.index("before")
    assert heads[start : start + 3] == ["before", "a", "b"]
    other = folder_results(["s0", "s1"], ["before", "after"], 9, prints[1])
    write_json(folders[1] / "probes.json", other)
    page, _ = document(folders, tmp_path / "r.html")
    heads = [th["text"] for th in page.all("th") if th["attrs"]["scope"] == "col"]
    start = heads.index("before")
    assert heads[start : start + 4] == ["before", "before (b)", "a", "b"]


def heads_of(text, title):
    """What heads the rows and columns of one section."""
    section = text[text.index(f">{title}</h2>") :]
    return [head["text"] for head in Document(section[: section.find("<h2")]).all("th")]


def test_the_untrained_encoder_is_on_the_page_at_its_best_and_as_it_started(tmp_path):
    run = write_run(tmp_path / "birds", ["t"], steps=40)
    best = f"{START}?pad_to=30"
    # the run is .05 above the one, .35 above the other
    results = folder_results(["s0"], [best, str(run), START])
    results["references"] = {str(run): {"start": START, "best": best}}
    write_json(run / "probes.json", results)
    page, _ = document([run], None)
    leads = [p["text"] for p in page.all("p")]
    of_best, of_start = (text for text in leads if text.startswith("Of one set compared with "))
    assert of_best.startswith(
        "Of one set compared with encoder?pad_to=30 (untrained, at its best), birds improved on s0"
    )
    assert "+0.050" in of_best
    assert of_start.startswith(
        "Of one set compared with encoder (untrained, with the run's settings), birds improved"
    )
    assert "+0.350" in of_start
    heads = [th["text"] for th in page.all("th") if th["attrs"]["scope"] == "col"]
    place = heads.index("encoder?pad_to=30untrained, at its best")
    assert heads[place : place + 3] == [heads[place], "encoderuntrained, with the run's settings", "birds"]
    cells = [td["text"] for td in page.all("td") if "+0.050" in td["text"]]
    assert len(cells) == 3
    assert all(cell.index("+0.050") < cell.index("+0.350") for cell in cells)


def test_a_task_without_scores_is_named_with_its_reason(tmp_path):
    run = write_run(tmp_path / "birds", ["t"], steps=40)
    results = folder_results(["s0"], [START, str(run)])
    results["tasks"] |= {"s1": {"domain": None, "metric": "accuracy", "undefined": {"accuracy": "no clip"}}}
    results["tasks"]["s0"]["not_scored"] = {"broken": "embeddings are not finite"}
    write_json(run / "probes.json", results)
    page, text = document([run], None)
    notes = [li["text"] for li in page.all("li")]
    assert [note for note in notes if note.endswith("probes.json: s1: accuracy is undefined: no clip")]
    assert [note for note in notes if note.endswith("s0: broken is not scored: embeddings are not finite")]
    heads = heads_of(text, "Probes of the frozen encoder")
    assert "s0other" in heads
    assert not [head for head in heads if head.startswith("s1")]


@pytest.mark.parametrize("signed", [True, False])
def test_probes_of_another_run_never_stand_under_the_runs_name(tmp_path, signed):
    run, other = (write_run(tmp_path / name / "birds", ["t"], steps=40) for name in ("here", "there"))
    write_weights(run, b"here")
    prints = {str(other): write_weights(other, b"there")} if signed else {}
    write_json(run / "probes.json", folder_results(["s0", "s1"], [START, str(other)], fingerprints=prints))
    page, text = document([run], None)
    mark = f"birds (other weights, {prints[str(other)][:8]})" if signed else "birds (weights not stated)"
    heads = heads_of(text, "Probes of the frozen encoder")
    assert mark in heads
    assert "birds" not in heads
    assert "no result compares it with its start" in page.all("p")[0]["text"]
    notes = [li["text"] for li in page.all("li")]
    assert any("none of its models has the weights of a checkpoint of birds" in note for note in notes)
    _, text = document([other], None, probes=[run / "probes.json"])
    assert "birds" in heads_of(text, "Probes of the frozen encoder")  # there they belong


def test_answers_of_another_run_keep_its_name(tmp_path):
    run, other = (write_run(tmp_path / name, ["t"], steps=40) for name in ("here", "there"))
    write_weights(run, b"here")
    foreign = write_weights(other, b"there")
    answers = answers_of({"tones:tone": ["low", "high"]})
    answers["tones:tone"] |= {"model": "runs/there", "fingerprint": foreign}
    write_json(run / "answers.json", answers)
    page, text = document([run], None)
    section = text[text.index(">Answers</h2>") :]
    cells = [e["text"] for e in Document(section[: section.find("<h2")]).elements if e["tag"] in ("th", "td")]
    assert f"there (other weights, {foreign[:8]})" in cells
    assert "here" not in cells
    notes = [li["text"] for li in page.all("li")]
    assert any("1 of 1 sets were answered by weights of no checkpoint of here" in note for note in notes)


def test_a_forgetting_matrix_of_another_run_is_left_out(tmp_path):
    run = write_run(tmp_path / "run", ["t"], steps=40)
    mine = write_weights(run, b"here")
    matrix = forgetting_results()["probe/linear"]
    for prints, is_shown in (({"speech": mine, "sounds": "0" * 64}, True), ({"speech": "0" * 64}, False)):
        write_json(run / "forgetting.json", {"probe/linear": {**matrix, "fingerprints": prints}})
        page, _ = document([run], None)
        assert ("Forgetting" in [h["text"] for h in page.all("h2")]) is is_shown
        assert any("was measured on a run other than" in li["text"] for li in page.all("li")) is not is_shown


def test_another_models_results_stand_beside(tmp_path):
    run = write_run(tmp_path / "run", ["t"], steps=40)
    write_json(run / "probes.json", folder_results(["s0"], ["before", str(run)]))
    labels = {"tones:tone": ["low", "high"]}
    write_json(run / "answers.json", answers_of(labels, right=0.95))
    probes = write_json(tmp_path / "dasheng.json", folder_results(["s0", "s7"], ["dasheng"]))
    (tmp_path / "rival").mkdir()
    answers = write_json(tmp_path / "rival" / "answers.json", answers_of(labels, right=0.4, seed=1))
    page, _ = document([run], None, against=[probes, answers])
    heads = [th["text"] for th in page.all("th")]
    assert "dasheng" in heads
    assert any(head.startswith("s7") for head in heads)
    lead = page.all("p")[0]["text"]
    assert "compared with before and rival, run improved on" in lead
    assert "tones:tone (answers, accuracy +" in lead
    assert any("McNemar" in li["text"] for li in page.all("li"))


def test_models_of_one_name_with_other_weights_are_distinguished(tmp_path):
    """Two files of probes call what they measured "after"."""
    runs, files, prints = [], [], []
    for seed, name in enumerate(("a", "b")):
        runs.append(write_run(tmp_path / name, ["t"], steps=40))
        prints.append({"before": "f0", "after": write_weights(runs[-1], name.encode())})
        results = folder_results([f"s{seed}", "both"], ["before", "after"], seed, prints[-1])
        files.append(write_json(tmp_path / f"{name}.json", results))
    page, text = document(runs, tmp_path / "r.html", probes=files)
    assert {"a", "b"} <= set(heads_of(text, "Probes of the frozen encoder"))
    cells = [td["text"] for td in page.all("td")]
    for file in files:
        for task in json.loads(file.read_text())["scores"].values():
            assert any(f"{task['after']['knn']['mean']:.3f}" in cell for cell in cells)
    _, text = document(runs[:1], tmp_path / "r.html", probes=files[:1], against=files[1:])
    heads = heads_of(text, "Probes of the frozen encoder")
    assert {"a", f"after (other weights, {prints[1]['after'][:8]})"} <= set(heads)


def test_whitened_scores_stand_beside_the_others_and_are_compared_with_none_of_them(tmp_path):
    """One run was probed in both ways, the other one whitened alone."""
    runs = [write_run(tmp_path / name, ["t"], steps=40) for name in ("a", "b")]
    names = {"a": ["before", str(runs[0])], "b": ["before", str(runs[1])]}
    plain = write_json(tmp_path / "plain.json", folder_results(["s0", "s1"], names["a"]))
    white = [
        write_json(
            tmp_path / f"white_{name}.json",
            {**folder_results(["s0", "s1"], names[name], 3), "whitened": True},
        )
        for name in ("a", "b")
    ]
    page, text = document(runs, tmp_path / "r.html", probes=[plain, *white])
    captions = [caption["text"].split(":")[0] for caption in page.all("caption")]
    probes = [f"{mark}{probe} probe" for mark in ("", "whitened ") for probe in ("linear", "MLP", "kNN")]
    assert [text for text in captions if text.endswith(" probe")] == [*probes[3:], *probes]
    assert "whitened linear probe +0.050" in text
    _, text = document(
        runs, tmp_path / "r.html", probes=[plain, white[1]]
    )  # no probe has scores of both runs
    assert "Every set" in text
    assert "weighted means" not in text


def test_answers_from_folders_of_one_name_stand_side_by_side(tmp_path):
    run = write_run(tmp_path / "run", ["t"], steps=40)
    files = []
    for seed, name in enumerate(("a", "b")):
        (tmp_path / name / "eval").mkdir(parents=True)
        answers = answers_of({"tones:tone": ["low", "high"]}, right=0.4, seed=seed)
        files.append(write_json(tmp_path / name / "eval" / "answers.json", answers))
    page, _ = document([run], tmp_path / "r.html", against=files)
    cells = [td["text"] for td in page.all("td")]
    assert "eval" in cells
    assert str(files[1]) in cells


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"probes": ["no.json"]}, r"no\.json: cannot be read as JSON"),
        ({"probes": ["bad.json"]}, r"bad\.json: holds no probe scores"),
        ({"answers": ["bad.json"]}, "holds no metric and score"),
        ({"against": ["odd.json"]}, "'set' holds no probe scores"),
        ({"answers": ["bad.json", "bad.json"]}, "--answers is given 2 times for 1 run"),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path, wanted, message):
    run = write_run(tmp_path / "run", ["t"], steps=40)
    write_json(tmp_path / "bad.json", [1, 2])
    write_json(tmp_path / "odd.json", {"tasks": {}, "scores": {"set": {"model": 0.5}}})
    files = {key: [tmp_path / name for name in names] for key, names in wanted.items()}
    with pytest.raises(UserError, match=message):
        report_runs([run], None, Wanted(**files))


def test_a_run_given_twice_and_a_torn_forgetting_file_are_named(tmp_path):
    run = write_run(tmp_path / "run", ["t"], steps=40)
    with pytest.raises(UserError, match="is given twice"):
        report_runs([run, tmp_path / "run" / ".." / "run"], None, Wanted())
    write_json(run / "forgetting.json", {"probe/linear": {"stages": ["start"]}})
    with pytest.raises(UserError, match="'probe/linear' is not a score matrix"):
        report_runs([run], None, Wanted())


def test_two_configs_are_compared_key_by_key(two_runs, tmp_path):
    folders, probes = two_runs
    page, _ = document(folders, tmp_path / "r.html", probes=[probes])
    cells = [e["text"] for e in page.elements if e["tag"] in ("th", "td")]
    at = cells.index("encoders.whisper.lr")
    assert cells[at : at + 3] == ["encoders.whisper.lr", "1e-05", "2e-05"]
    assert "encoders.whisper.path" not in cells


def test_a_change_that_is_rounded_to_zero_has_no_minus():
    macros = make_environment().get_template("macros.html.jinja").module
    assert "</span> +0.000<" in str(macros.moved(-1e-9, "unclear"))
    assert "</span> -0.2<" in str(macros.moved(-0.2, "worse", 1))
