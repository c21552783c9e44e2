"""Vocabulary: identifiers are words of the field, and functions are verbs."""

from __future__ import annotations

import ast
import functools
import io
import re
import tokenize
from collections import Counter
from pathlib import Path

from tests.house.sources import ROOT, parse, python_files

TREES = ("bridge", "engine", "touchdesigner", "tests")

#: Words that say nothing about the thing they name → what to write instead.
DIALECT: dict[str, str] = {
    "told": "report, message, metadata",
    "kept": "cached, retained, previous, memo",
    "found": "match, entry, result, or what was found",
    "made": "result, built, output",
    "own": "user_, local_, or nothing",
    "taken": "prepared, accepted, used",
    "wanted": "requested, expected",
    "fresh": "new, changed, updated",
    "wish": "request",
    "wishes": "requests",
    "beside": "second_source, alongside",
    "given": "argument, input, provided",
    "standing": "idle, pending, static",
    "astray": "round_trip_error",
    "dressed": "text_encoder_loras",
    "optics": "image effects",
    "lane": "cuda_stream",
    "lanes": "cuda_streams",
    "kinds": "types, or what they are kinds of",
    "poison": "fault_hook, inject",
    "door": "access policy",
    "doors": "access policy",
    "lesson": "sample, batch",
    "lessons": "dataset",
    "slim": "compress, prune",
    "distil": "consistency_distillation",
    "conductor": "automation",
    "feeds": "inputs",
    "meant": "resolved, coerced, target",
    "joined": "concatenate, cat_batch",
    "fitted": "fit",
    "resized": "resize",
    "moved": "to, shifted, dynamic",
    "theirs": "baseline",
    "ours": "phosphene",
    "thinning": "coalesce",
    "cuelist": "cue_list",
    "cuelists": "cue_list",
    "trials": "stress",
    "rehearsal": "harness",
    "floods": "load",
    "benching": "bench",
    "noising": "noise_schedule",
    "mend": "remedy, hint",
    "nobody": "baseline, none",
    "somebody": "client, peer",
    "oneself": "self",
}
#: The same of several words in a row.
PHRASES: dict[tuple[str, ...], str] = {
    ("fed", "back"): "apply_feedback",
    ("laid", "out"): "layout",
    ("laid", "over"): "overlay",
    ("taken", "apart"): "tree_flatten",
    ("put", "together"): "tree_unflatten",
    ("put", "on"): "install",
    ("step", "aside"): "limit_to_one_thread",
    ("give", "back"): "trim_heap",
    ("goes", "on"): "continues, keeps running",
    ("go", "on"): "continue, keep running",
    ("let", "go"): "release",
}
#: Dialect words that are also plain English in the sentence that a test function's name is.
PLAIN_IN_SENTENCES = {
    "kept", "found", "made", "own", "taken", "wanted", "given", "standing", "joined", "fitted", "resized", "moved",
    "nobody", "somebody", "put_on", "goes_on", "go_on", "let_go", "give_back", "put_together", "taken_apart",
    "laid_out", "door", "doors",
}  # fmt: skip
#: (file pattern, identifier) → why that name stays.
ALLOWED: dict[tuple[str, str], str] = {
    ("**", "FileNotFoundError"): "the standard library's name",
    ("**", "PackageNotFoundError"): "the standard library's name",
    ("**", "LocalEntryNotFoundError"): "huggingface_hub's name",
    ("**", "lift_fresh"): "torch's name of an operator",
    ("engine/**", "feeds_back"): "the verb of feedback, not the old name of the sinks' threads",
    ("tests/**", "given"): "hypothesis' decorator",
}
#: Modules with a dialect word in their name that stay for users' scripts.
ALLOWED_FILES = {"bridge/fresh.py": "`python -m bridge.fresh` is an alias of `python -m bridge.bootstrap`"}
#: Participles that are also nouns or verbs of the field.
VERBS_IN_ED = {
    "embed",
    "heed",
    "feed",
    "seed",
    "speed",
    "need",
    "shed",
    "proceed",
    "exceed",
    "succeed",
    "bed",
    "led",
    "red",
}
#: Irregular participles that no function may be named by.
PARTICIPLES = {
    "told",
    "kept",
    "found",
    "made",
    "taken",
    "given",
    "drawn",
    "sent",
    "held",
    "built",
    "known",
    "written",
    "chosen",
    "laid",
}
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def words(identifier: str) -> tuple[str, ...]:
    """Return the lower-case words of a snake_case or CamelCase identifier."""
    return tuple(word.lower() for word in _WORDS.findall(identifier))


def dialect_in(identifier: str) -> list[str]:
    """Return the dialect words and phrases in an identifier."""
    parts = words(identifier)
    hits = [word for word in parts if word in DIALECT]
    for phrase in PHRASES:
        if any(parts[i : i + len(phrase)] == phrase for i in range(len(parts))):
            hits.append("_".join(phrase))
    return [hit for hit in hits if hit not in PLAIN_IN_SENTENCES] if parts[:1] == ("test",) else hits


def is_allowed(file: str, identifier: str) -> bool:
    return any(
        name == identifier and (pattern == "**" or file == pattern or file.startswith(pattern.removesuffix("**")))
        for pattern, name in ALLOWED
    )


@functools.cache
def identifiers(path: Path) -> list[tuple[str, int]]:
    """Return every name in a file with its line, f-strings' expressions included."""
    text = path.read_text(encoding="utf-8")
    return [
        (token.string, token.start[0])
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.NAME
    ] + fields(path)


def fields(path: Path) -> list[tuple[str, int]]:
    """Return the names inside f-strings, which Python 3.11's tokenizer leaves inside their string."""
    return [
        (node.id if isinstance(node, ast.Name) else node.attr, node.lineno)
        for string in ast.walk(parse(path))
        if isinstance(string, ast.JoinedStr)
        for node in ast.walk(string)
        if isinstance(node, ast.Name | ast.Attribute)
    ]


def house_files() -> list[tuple[str, Path]]:
    """Return the files that are checked: all but this one, which names the words."""
    paths = [path for path in python_files(*TREES) if path != Path(__file__).resolve()]
    return [(path.relative_to(ROOT).as_posix(), path) for path in paths]


def dialect_uses() -> list[tuple[str, int, str, str]]:
    """Return (file, line, identifier, word) for every identifier with a dialect word."""
    return [
        (file, line, identifier, word)
        for file, path in house_files()
        for identifier, line in sorted(set(identifiers(path)))
        if not is_allowed(file, identifier)
        for word in dialect_in(identifier)
    ]


def participle_functions() -> list[tuple[str, int, str]]:
    """Return (file, line, name) for every function that is named by a participle. Properties are nouns and may be."""
    hits = []
    for file, path in house_files():
        for node in ast.walk(parse(path)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.decorator_list:
                continue
            parts = words(node.name)
            if len(parts) == 1 and (
                parts[0] in PARTICIPLES or (parts[0].endswith("ed") and parts[0] not in VERBS_IN_ED)
            ):
                hits.append((file, node.lineno, node.name))
    return hits


def summary(uses: list[tuple[str, int, str, str]]) -> str:
    """Return the counts by folder and word, then the first places."""
    counts = Counter((str(Path(file).parent), word) for file, _, _, word in uses)
    lines = [f"{place}: {word} ×{count} → {DIALECT.get(word, '…')}" for (place, word), count in sorted(counts.items())]
    return "\n".join([*lines, "", *(f"{file}:{line}: {name}" for file, line, name, _ in uses[:40])])


def test_identifiers_are_words_of_the_field() -> None:
    uses = dialect_uses()
    assert not uses, f"{len(uses)} identifiers hold a word of the house's old dialect\n{summary(uses)}"


def test_functions_are_verbs() -> None:
    hits = participle_functions()
    assert not hits, "\n".join(
        f"{file}:{line}: {name}() is a participle; name what it does" for file, line, name in hits
    )


def test_files_are_named_by_the_field() -> None:
    hits = [
        f"{file}: {word}"
        for file, _ in house_files()
        for word in dialect_in(Path(file).stem)
        if file not in ALLOWED_FILES
    ]
    assert not hits, "\n".join(hits)


def test_every_allowed_name_is_still_in_use() -> None:
    names = {(file, identifier) for file, path in house_files() for identifier, _ in identifiers(path)}
    unused = [name for pattern, name in ALLOWED if not any(name == identifier for _, identifier in names)]
    assert not unused, f"remove {unused} from ALLOWED"
    assert all((ROOT / file).exists() for file in ALLOWED_FILES)


def test_the_words_of_an_identifier() -> None:
    assert words("_fed_back2") == ("fed", "back", "2")
    assert words("HTTPNotFound") == ("http", "not", "found")
    assert dialect_in("KeptRows") == ["kept"]
    assert dialect_in("ownership") == []
    assert dialect_in("test_the_newest_frame_is_kept") == []
    assert dialect_in("test_mistakes_are_told") == ["told"]
    assert dialect_in("put_together") == ["put_together"]
