"""Files that would make a reader work for hours or fill its memory end with one sentence, soon."""

import copy
import time

import pytest

from uniaudio.cli import main
from uniaudio.config.strict_yaml import parse
from uniaudio.data.chat_markup import read_chat_markup
from uniaudio.data.jinja import Text
from uniaudio.data.keep_conditions import Condition
from uniaudio.data.sources.paths import expand_braces
from uniaudio.errors import RowError, UserError

SECONDS = 5  # of processor time: other work on the machine does not count
ROW = {"text": "text " * 10, "number": 10**9, "items": [1, 2, [3]]}
DOUBLED = "{% set ns = namespace(x=START) %}{% for i in range(100) %}{% set ns.x = STEP %}{% endfor %}USE"
TEXTS = [
    "{{ 'x' * 10**9 }}",
    "{{ text * number }}",
    "{{ [1] * number }}",
    "{{ 9 ** (9 ** 9) }}",
    "{{ 2 ** number }}",
    "{{ 1e308 ** 1e308 }}",
    "{% for i in range(10**9) %}x{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
    "{% for x in [[1] * 99] * 99 recursive %}{{ loop([[1] * 99] * 99) }}{% endfor %}",
    "{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    DOUBLED.replace("START", "'ab'").replace("STEP", "ns.x ~ ns.x").replace("USE", "{{ ns.x }}"),
    DOUBLED.replace("START", "'ab'").replace("STEP", "ns.x + ns.x").replace("USE", "{{ ns.x }}"),
    DOUBLED.replace("START", "[1]").replace("STEP", "[ns.x, ns.x]").replace("USE", "{{ ns.x | tojson }}"),
    DOUBLED.replace("START", "(1,)").replace("STEP", "(ns.x, ns.x)").replace("USE", "{{ {ns.x: 1} }}"),
    DOUBLED.replace("START", "[1]").replace("STEP", "dict(a=ns.x, b=ns.x)").replace("USE", "{{ ns.x ~ '' }}"),
    "{{ 'x' | center(10**9) }}",
    "{{ text | center(number) }}",
    "{{ text.center(number) }}",
    "{{ text.zfill(10**9) }}",
    "{{ text.ljust(10**9) }}",
    "{{ '\t'.expandtabs(10**9) }}",
    "{{ text | indent(10**9) }}",
    "{{ range(99) | batch(10**9, 'x') | list }}",
    "{{ range(99) | slice(10**9) | list }}",
    "{{ items | tojson(indent=10**9) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '%(a)1000000000s' % {'a': 1} }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ '{:>{}}'.format(1, number) }}",
    "{{ '{a:>1000000000}'.format_map({'a': 1}) }}",
    "{{ (1).to_bytes(10**9, 'big') }}",
    "{{ text | replace('', 'x' * 5000) | replace('x', 'y' * 5000) | replace('y', 'z' * 5000) }}",
    "{{ text.replace('', 'x' * 5000).replace('x', 'y' * 5000).replace('y', 'z' * 5000) }}",
    "{{ (['x' * 9999] * 99999) | join }}",
    "{{ ','.join(['x' * 9999] * 99999) }}",
    "{{ range(99999) | map('center', 999) | list }}",
    "{{ range(99999) | map('string') | join(text) }}",
    "{{ ('<!-- -->' * 99999) | striptags }}",
    "{{ [[1] * 999] * 9999 | sum(start=[]) }}",
    "{{ 'x'.translate({120: 'y' * 10000000}) }}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ " + "-" * 20000 + "1 }}",
    "{% for i in items %}" * 30 + "{% endfor %}" * 30,
    "{{ " + "9" * 5000 + " }}",
    "x" * 200_000,
]


@pytest.mark.parametrize("source", TEXTS, ids=range(len(TEXTS)))
def test_a_template_that_multiplies_ends_with_a_sentence(source):
    started = time.process_time()
    with pytest.raises((UserError, RowError)) as raised:
        Text(source, "t.yaml: target").render(ROW)
    assert time.process_time() - started < SECONDS
    assert str(raised.value).count("\n") == 0
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize(
    "source",
    ["'x' * 10**9 == text", "text in ('x' * 10**9)", "2 ** number > 1", "text.center(number) == ''"],
)
def test_a_condition_that_multiplies_ends_with_a_sentence(source):
    with pytest.raises(UserError):
        Condition(source, "c.yaml: keep").is_true(ROW)


TURNS = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|im_end|>' }}{% endfor %}"
CHAT_TEMPLATES = {
    "product": "{{ 'x' * 10**9 }}",
    "loops": "{% for i in range(9999) %}{% for j in range(9999) %}{% continue %}{% endfor %}{% endfor %}",
    "recursion": "{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "bounded recursion": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "doubling": DOUBLED.replace("START", "[1]").replace("STEP", "dict(a=ns.x, b=ns.x)").replace("USE", ""),
    "turns": "{% set ns = namespace(x=messages) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "generation": "{% for i in range(99999) %}{% generation %}{{ messages }}{% endgeneration %}{% endfor %}",
    "time": "{{ strftime_now('%Y' * 400000) }}",
    "wide time": "{{ strftime_now('%9999Y' * 9999) }}",
    "separators": "{{ (range(9000) | list) | tojson(separators=('y' * 90000, ':')) }}",
    "indentation": "{{ {'a': messages} | tojson(indent='y' * 90000) }}",
    "keys": "{{ dict.fromkeys(range(99999), 'x' * 99999) }}",
    "message": "{{ raise_exception('\x1b[31m' + 'x' * 900000) }}",
    "lorem ipsum": "{{ lipsum(n=10000000) }}",
    "nesting": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "branches": "{% if a %}1" + "{% elif a %}1" * 7000 + "{% endif %}",
    "length": "x" * 200_000,
    "long prompt": "{{ '<a>' * 9000 }}",
}


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_a_chat_template_that_multiplies_ends_with_a_sentence(chat_tokenizer, name):
    tokenizer = copy.deepcopy(chat_tokenizer)
    tokenizer.chat_template = CHAT_TEMPLATES[name] + TURNS
    started = time.process_time()
    with pytest.raises(UserError, match=r"^the decoder's chat template cannot render") as raised:
        read_chat_markup(tokenizer)
    assert time.process_time() - started < SECONDS
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("command", ["check", "preview", "train"])
def test_commands_end_with_a_sentence_for_such_a_decoder(tone_run, capsys, command):
    folder = tone_run.parent / "qwen"
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATES["loops"])
    started = time.process_time()
    with pytest.raises(SystemExit) as left:
        main([command, str(tone_run)])
    assert time.process_time() - started < SECONDS
    assert left.value.code == 2
    assert "takes more than 10,000 steps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("template", "prefix"),
    [
        ("{{ bos_token ~ strftime_now('%%') ~ ({'a': 1} | tojson) }}", '<|im_start|>%{"a": 1}'),
        ("{{ [1, {'b': 'ä'}] | tojson(indent=2) }}", '[\n  1,\n  {\n    "b": "ä"\n  }\n]'),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% generation %}{{ messages | length }}{% endgeneration %}", "1"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = 5 %}{% endfor %}{{ ns.n }}", "5"),
    ],
)
def test_what_chat_templates_use_is_there(chat_tokenizer, template, prefix):
    tokenizer = copy.deepcopy(chat_tokenizer)
    tokenizer.bos_token = "<|im_start|>"
    tokenizer.chat_template = template + TURNS
    turn = {"role": "user", "content": "Question"}
    stock = tokenizer.apply_chat_template([turn], tokenize=False)
    assert stock == f"{prefix}user: Question<|im_end|>"
    assert read_chat_markup(tokenizer).prefix == f"{prefix}user: "


@pytest.mark.parametrize(
    ("source", "written"),
    [
        ("{{ text | trim | upper }}", "TEXT"),
        ("{{ 'text: ' ~ (text | trim) }}", "text: text"),
        ("{{ '%.1f s' | format(seconds) }}", "2.5 s"),
        ("{{ '{:>6}'.format(text | trim) }}", "  text"),
        ("{% for item in items %}{{ loop.index }}: {{ item }}; {% endfor %}", "1: a; 2: b; "),
        ("{% for a in items %}{% for b in items %}{{ a ~ b }} {% endfor %}{% endfor %}", "aa ab ba bb "),
        ("{{ items | join('-') }}{{ ', '.join(items) }}", "a-ba, b"),
        ("{{ items | map('upper') | join }}", "AB"),
        ("{{ rows | join(', ', attribute='name') }}", "x, y"),
        ("{% set n = items | length %}{{ n * 2 + 2 ** n }}", "8"),
        ("{% macro twice(x) %}{{ x }}{{ x }}{% endmacro %}{{ twice('a') }}", "aa"),
        ("{{ '-' * 3 }}{{ 7 % 4 }}", "---3"),
        ("{{ [3, 1, 2] | sort | first }}{{ 'b' in items }}", None),
    ],
)
def test_what_templates_are_for_is_as_it_was(source, written):
    row = {"text": " text ", "seconds": 2.49, "items": ["a", "b"], "rows": [{"name": "x"}, {"name": "y"}]}
    text = Text(source, "t.yaml: target")
    if written is None:
        with pytest.raises(RowError, match="is not text"):
            text.render(row)
    else:
        assert text.render(row) == written
        assert text.render(row) == written  # a budget is of one rendering


def test_a_row_that_is_too_long_for_a_loop_is_a_row_error():
    text = Text("{% for item in items %}{{ item }}{{ text }}{% endfor %}", "t.yaml: target")
    with pytest.raises(RowError, match="more than 1,000,000 characters"):
        text.render({"items": ["a"] * 5000, "text": "b" * 5000})


def laugh(level):
    inside = ", ".join([f"*a{level - 1}"] * 9) if level else "x"
    return f"a{level}: &a{level} [{inside}]\n"


LAUGHS = "".join(map(laugh, range(12)))
YAML = {
    "aliases": LAUGHS,
    "aliases of mappings": "".join(
        f"a{i}: &a{i} {{{', '.join(f'k{j}: *a{i - 1}' for j in range(9))}}}\n" if i else "a0: &a0 {x: 1}\n"
        for i in range(12)
    ),
    "flow nesting": "[" * 50_000,
    "flow nesting, closed": "a: " + "[" * 300 + "]" * 300,
    "block nesting": "".join(" " * i + "a:\n" for i in range(700)),
    "dashes": "- " * 50_000 + "x",
    "questions": "? " * 50_000 + "x",
    "length": "a: " + "x" * 10_000_000,
    "many values": "[" + "1," * 240_000 + "]",
    "digits": "a: " + "9" * 5000,
    "hexadecimal": "a: 0x" + "f" * 100_000,
    "itself": "a: &a [*a]",
    "itself in a mapping": "a: &a {b: {c: *a}}",
}


@pytest.mark.parametrize("name", YAML)
def test_yaml_that_multiplies_ends_with_a_sentence(name):
    started = time.process_time()
    if name == "hexadecimal":  # long, but a number
        parse(YAML[name], "bomb.yaml")
    else:
        with pytest.raises(UserError, match=r"^bomb\.yaml: ") as raised:
            parse(YAML[name], "bomb.yaml")
        assert "\n" not in str(raised.value)
    assert time.process_time() - started < SECONDS


def test_aliases_are_read_where_they_are_few():
    assert parse("a: &a [1, 2]\nb: *a\nc: {d: *a}", "x") == {"a": [1, 2], "b": [1, 2], "c": {"d": [1, 2]}}


@pytest.mark.parametrize(
    "text", ["{0..9999999999}", "{0..99}" * 9, "{a,b,c,d,e,f,g,h}" * 20, "{1.." + "9" * 5000 + "}"]
)
def test_braces_that_name_too_many_places_are_refused(text):
    with pytest.raises(UserError, match="names more than 1,000,000 files"):
        expand_braces(text)
