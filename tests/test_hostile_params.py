"""Hostile params.yaml: values of every wrong shape, texts that would hang or crash a reader, files that are none.

Each is refused with a `ParamsError` that names the place, in bounded time and with nothing that a terminal would act
on; the few shapes that a setting can have are accepted as they are.
"""

import datetime
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hostile import LAUGHS, MERGED, NO_FILES, leaves, no_file, replaced
from ruamel.yaml import YAML

from cones.common.errors import ParamsError
from cones.common.yaml_file import MOST_BYTES
from cones.config.params import load_params, parse_params

SOUND = """
backbones:
  tiny: {kind: clip, source: models/tiny, revision: 57c216476eefef5ab752ec549e440a49ae4ae5f3}
  glip: {kind: glip, source: models/glip}
  sd: {kind: sd, source: models/sd, clip: {source: models/tiny}, judge: {source: models/judge}}
data:
  drawn: {kind: world, vocabulary: novel, size: 32, train: 6, val: 4, test: 5, seed: 1}
  many: {kind: scenes, source: cones/synthetic, vocabulary: base, objects: 3}
  zorb: {kind: subject_world, thing: zorb, colour: purple, val: 2}
  cat: {kind: subject, source: cats, masks: alpha, val: 1, test: 1}
  folder: {kind: folder, source: f, val_fraction: 0.1, test_fraction: 0.3, unreadable: skip, duplicates: drop}
  grouped: {kind: folder, source: f, group_by: {pattern: (a)}}
  table: {kind: csv, source: f, table: list.csv, group_by: someone}
  coop: {kind: coop, source: f, split: s.json, pictures: p}
  coco: {kind: coco, source: f, annotations: {train: a.json, val: b.json}, pictures: {train: a, val: b}}
  voc: {kind: voc, source: f, classes: [a, b]}
  masks: {kind: masks, source: f, pictures: p, masks: m, ending: _m, values: [1, 2], ignore: [255], smallest: 3}
concepts:
  few: {task: classification, backbone: tiny, data: drawn, shots: 4, views: 2, names: {zorb: a gear}, templates: [a {}]}
  found: {task: segmentation, backbone: glip, data: many, shots: null, val_shots: 3, score_threshold: 0.5}
  made: {task: generation, backbone: sd, data: zorb, word: flower, prompts: [a red {}], guidance: 4.0, flip: false}
runs:
  zero: {concept: few, method: {name: zero_shot, names: {zorb: a gear}}}
  coop: {concept: few, method: {name: coop, n_ctx: 2, ctx_init: a photo, optimiser: sgd, momentum: 0.5, lr: 0.01}}
  prompts: {concept: found, method: {name: prompt_tuning, class_specific: true, patience: 3}}
  table: {concept: found, method: {name: language_prompt, epochs: 6, weight_decay: 0.25, warmup_epochs: 0}}
  cones: {concept: found, method: {name: cones, n_tokens: 2, init: random, checkpoint_seconds: 1.0}}
  inverted: {concept: made, method: {name: textual_inversion, sample_every: 5, accumulate: 2}}
  rows: {concept: made, method: {name: cones, rows: 5, noise: {copies: 2, stratified: true, antithetic: true}}}
finetunes:
  head: {concept: found, from: cones, kind: head, steps: 3, prompt_lr: 0.001}
  full: {concept: found, from: cones, kind: full, least_scale: 0.6, colour_jitter: 0.1}
  dream: {concept: made, from: rows, kind: dreambooth, prior_pictures: 4, prior_weight: 0.5, noise: {copies: 1}}
  lora: {concept: made, from: rows, kind: lora, rank: 2, lr: 0.001, gradient_checkpointing: true}
""".replace("a {}", '"a {}"').replace("a red {}", '"a red {}"')
RAW = YAML(typ="safe").load(SOUND)
SHAPES = {
    "null": None,
    "true": True,
    "zero": 0,
    "minus one": -1,
    "a half": 0.5,
    "1e308": 1e308,
    "nan": math.nan,
    "infinity": math.inf,
    "2**63": 2**63,
    "no letters": "",
    "10,000 letters": "x" * 10_000,
    "the letter 0": "a\0b",
    "terminal codes": "\x1b[2J\r",
    "empty list": [],
    "list in list": [[]],
    "empty mapping": {},
    "mapping": {"a": 1},
    "mapping of no text": {None: 1, 2: {}},
    "date": datetime.date(2026, 1, 1),
    "bytes": b"x",
}
TAKES = {
    "null": "backbones.tiny.revision data.cat.masks data.coop.split data.coop.pictures data.voc.classes "
    "data.grouped.group_by data.table.group_by "
    "data.masks.values concepts.few.templates concepts.found.shots concepts.found.val_shots concepts.made.prompts "
    "runs.coop.method.ctx_init runs.prompts.method.patience runs.cones.method.n_tokens "
    "runs.inverted.method.sample_every runs.rows.method.noise finetunes.dream.prior_pictures finetunes.dream.noise",
    "true": "concepts.made.flip runs.prompts.method.class_specific runs.rows.method.noise.stratified "
    "runs.rows.method.noise.antithetic finetunes.lora.gradient_checkpointing",
    "zero": "data.drawn.seed data.zorb.val data.cat.val data.cat.test data.masks.ignore.0 "
    "concepts.found.score_threshold runs.coop.method.momentum runs.table.method.weight_decay "
    "runs.table.method.warmup_epochs runs.cones.method.checkpoint_seconds finetunes.full.colour_jitter "
    "finetunes.dream.prior_pictures finetunes.dream.prior_weight",
    "a half": "data.folder.val_fraction data.folder.test_fraction concepts.found.score_threshold "
    "runs.coop.method.momentum runs.coop.method.lr runs.table.method.weight_decay "
    "runs.cones.method.checkpoint_seconds finetunes.head.prompt_lr finetunes.full.least_scale "
    "finetunes.full.colour_jitter finetunes.dream.prior_weight finetunes.lora.lr",
    "1e308": "runs.cones.method.checkpoint_seconds",
    "2**63": "runs.coop.method.lr runs.table.method.weight_decay runs.cones.method.checkpoint_seconds "
    "finetunes.head.prompt_lr finetunes.dream.prior_weight finetunes.lora.lr",
    "no letters": "data.coop.pictures data.coco.pictures data.coco.pictures.train data.coco.pictures.val "
    "data.masks.pictures data.masks.masks data.masks.ending",
    "empty list": "data.masks.ignore",
    "empty mapping": "concepts.few.names runs.zero.method.names runs.rows.method.noise finetunes finetunes.dream.noise",
}
"""The settings that may have such a value."""


def refusal(raw: Any, where: str) -> str:
    try:
        parse_params(raw)
    except ParamsError as error:
        message = str(error)
    else:
        pytest.fail(f"accepted: {where}")
    assert all(letter.isprintable() or letter == "\n" for letter in message), where
    assert len(message) < 60_000, where
    return message


def test_the_sound_tables_are_accepted() -> None:
    params = parse_params(RAW)
    assert (len(params.rows()), params.data["coco"].pictures) == (11, {"train": "a", "val": "b"})


def dumped(raw: Any, path: tuple) -> Any:
    """What is read at a path of tables that are accepted."""
    value: Any = parse_params(raw).model_dump(by_alias=True, exclude_unset=True)
    for key in path:
        value = value[key]
    return value


@pytest.mark.parametrize("shape", SHAPES)
def test_a_value_of_any_shape_is_right_where_it_is_or_refused_by_its_path(shape: str) -> None:
    """At every place: the file, its tables, their entries, their settings and what is in those."""
    for path in leaves(RAW):
        raw, where = replaced(RAW, path, SHAPES[shape]), ".".join(map(str, path))
        if where in TAKES.get(shape, "").split():
            assert dumped(raw, path) == SHAPES[shape], where
            continue
        message = refusal(raw, where)
        assert ".".join(map(str, path[:2])) in message, where
        assert (str(path[-1]) if path else "data") in message, where


TABLES = "data: {}\nbackbones: {}\nconcepts: {}\nruns: {}\n"
DEEP, MANY = "it is nested deeper than 20", "it holds more than 200,000 keys and values"
NOT_YAML = "params.yaml cannot be read as YAML: "
NOT_UTF8 = "params.yaml cannot be read as text in UTF-8: "
TEXTS: dict[str, tuple[str | bytes, str]] = {
    "3,000 lists": ("data: " + "[" * 3000 + "]" * 3000, DEEP),
    "200,000 lists": ("data: " + "[" * 200_000 + "]" * 200_000, DEEP),
    "200,000 mappings": ("data: " + "{a: " * 200_000, DEEP),
    "1,000 indented mappings": ("".join(" " * i + "a:\n" for i in range(1000)), DEEP),
    "300,000 list items in each other": ("- " * 300_000, DEEP),
    "aliases of aliases": (LAUGHS, MANY),
    "aliases of aliases in a table": (TABLES.replace("data: {}", LAUGHS + "data: *i"), MANY),
    "merged aliases of aliases": (MERGED, MANY),
    "300,000 numbers": ("[" + "1," * 300_000 + "]", MANY),
    "249,000 documents": ("---\n" * 249_000, MANY),
    "itself in a list": ("data: &a [*a]", "the alias `a` stands for nothing that is whole before it (line 1)"),
    "itself as a key": ("? &a {x: *a}\n: 1", "the alias `a` stands for nothing"),
    "itself merged": ("data: &a {<<: *a}", "the alias `a` stands for nothing"),
    "an alias of nothing": ("data: *a", "the alias `a` stands for nothing"),
    "a number of 5,000 digits": ("data: " + "9" * 5000, "is no value: Exceeds the limit (4300 digits)"),
    "a number of 400 digits": (
        f"seed: {'9' * 400}",
        "is no value: it is larger than any number has to be (line 1, column 7)",
    ),
    "a hexadecimal one of 5,000": ("data: 0x" + "f" * 5000, "is no value: it is larger than any number has to be"),
    "such a key": ("0x" + "f" * 900 + ": 1", "is no value: it is larger than any number has to be"),
    "a day that is none": ("data: 2026-99-99", "`2026-99-99` is no value: month must be in 1..12 (line 1, column 7)"),
    "a zone that is none": ("data: 2026-01-01T00:00:00+99:99", "`2026-01-01T00:00:00+99:99` is no value: offset must"),
    "a tag of Python": ("data: !!python/object/apply:os.system [touch x]", "python/object/apply:os.system` is a tag"),
    "a tag of a number": (
        "data: !!int x",
        "`tag:yaml.org,2002:int` is a tag, and nothing here needs one; leave it out",
    ),
    "a tag of a switch": ("data: !!bool x", "`tag:yaml.org,2002:bool` is a tag"),
    "bytes": ("data: !!binary aGVsbG8=", "`tag:yaml.org,2002:binary` is a tag"),
    "a set": ("data: !!set {a, b}", "`tag:yaml.org,2002:set` is a tag"),
    "a tag of its own": ("%TAG ! tag:x,2000:\n---\ndata: !foo 1", "`tag:x,2000:foo` is a tag"),
    "two documents": (
        f"{TABLES}---\n{TABLES}",
        NOT_YAML + "expected a single document in the stream but found another",
    ),
    "a key twice": (f"{TABLES}data: {{}}\n", NOT_YAML + 'while constructing a mapping found duplicate key "data"'),
    "a list as a key": ("? [a]\n: 1", "params.yaml has 5 mistakes"),
    "a mapping as a key": ("? {a: b}\n: 1", NOT_YAML + "while constructing a mapping found unhashable key"),
    "a number merged": ("data: {<<: 1}", NOT_YAML + "while constructing a mapping expected a mapping or list"),
    "a tab": ("data:\n\t- 1", NOT_YAML + "while scanning for the next token found character that cannot start any"),
    "YAML 9.9": ("%YAML 9.9\n---\na: 1", NOT_YAML + "found incompatible YAML document"),
    "half a surrogate": ('data: "\\ud800"', NOT_YAML + "while parsing a quoted scalar found invalid Unicode"),
    "an end that is missing": ('data: "x', NOT_YAML + "while scanning a quoted scalar found unexpected end of stream"),
    "the letter 0": (b"data: a\0b", NOT_YAML + "unacceptable character #x0000"),
    "terminal codes": (b"data: \x1b[2J", NOT_YAML + "unacceptable character #x001b"),
    "Latin-1": (b"data: \xe9", NOT_UTF8 + "unexpected end of data at byte 6; save it so"),
    "UTF-16": (TABLES.encode("utf-16"), NOT_UTF8),
    "a picture": (bytes(range(256)), NOT_UTF8),
    "nothing": (
        "",
        "must hold the tables data, backbones, concepts, runs, finetunes, studies, transfers; it holds None",
    ),
    "a word": ("x" * 900_000, "; it holds 'xxxxxxxx"),
    "a date": ("2026-01-01", "; it holds datetime.date(2026, 1, 1)"),
}


def load(folder: Path, text: str | bytes) -> Any:
    path = folder / "params.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_params(path)


@pytest.mark.parametrize(("text", "mistake"), TEXTS.values(), ids=TEXTS)
@pytest.mark.timeout(60)
def test_a_text_is_refused_before_it_is_built(tmp_path: Path, text: str | bytes, mistake: str) -> None:
    with pytest.raises(ParamsError, match=re.escape(mistake)) as caught:
        load(tmp_path, text)
    assert str(caught.value).replace("\n", "").isprintable()
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    "text",
    [SOUND.encode("utf-8-sig"), SOUND.replace("\n", "\r\n"), f"%YAML 1.2\n---\n{SOUND}...\n", SOUND + "# é\n" * 1000,
     SOUND.replace("{copies: 1}", "{<<: *n}").replace("rows: 5, noise: {", "rows: 5, noise: &n {").replace(
         "prior_weight: 0.5, noise: {<<: *n}", "prior_weight: 0.5, noise: {<<: *n, copies: 1, antithetic: false}")],
    ids=["byte order mark", "ends of lines as on Windows", "named as YAML 1.2", "comments", "an anchor and a merge"],
)  # fmt: skip
def test_a_text_is_read_as_it_is_meant(tmp_path: Path, text: str | bytes) -> None:
    params, plain = load(tmp_path, text), parse_params(RAW)
    assert params.runs == plain.runs
    assert params.finetunes["dream"].noise.copies == 1


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_of_settings_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    no_file(tmp_path / "params.yaml", kind)
    mistake = {
        "sparse": f"bytes; at most {MOST_BYTES} are read",
        "loop": (links := "cannot be read: too many levels of symbolic links"),
        "two links": links,
        "memory": "cannot be read",
        "nowhere": "is a link to /no/such\\x1b[2J, which does not exist",
    }.get(kind, "and a file is needed there")
    with pytest.raises(ParamsError, match=rf"params.yaml .*{re.escape(mistake)}"):
        load_params(tmp_path / "params.yaml")
    with pytest.raises(ParamsError, match=r"none\.yaml does not exist; run this from the project's folder"):
        load_params(tmp_path / "none.yaml")


TURNED = ("\u202e", "\u202a", "\u2066", "\u2069", "\u061c", "\u200f", "\u2028", "\x85")
PLACES = {
    "a name": "concepts.few.names.zorb", "a template": "concepts.few.templates.0", "a word": "concepts.made.word",
    "a prompt": "concepts.made.prompts.0", "a row's name": "runs.zero.method.names.zorb",
    "a context": "runs.coop.method.ctx_init", "a class": "data.voc.classes.0", "a thing": "data.zorb.thing",
}  # fmt: skip


@pytest.mark.parametrize("mark", TURNED, ids=ascii)
@pytest.mark.parametrize("where", PLACES.values(), ids=PLACES)
def test_words_that_no_card_can_hold_are_refused_by_the_check(where: str, mark: str) -> None:
    path = tuple(int(step) if step.isdecimal() else step for step in where.split("."))
    said = refusal(replaced(RAW, path, f"a{mark}{{}}"), where)
    assert f"`{path[-1]}`: must be plain text, without line breaks, control characters and what turns" in said
    assert parse_params(replaced(RAW, path, "\u0645\u06cc\u200c\u0631 {}"))
