"""The prompt encoder: each text is encoded once per style, the newest requests win, failures are counted."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from engine.diffusion.prompt_encoder import MAX_CACHED_TEXTS, EncodingRequest, PromptEncoder, TextStyle
from engine.models import Condition
from tests.waiting import until


def positive(text: str, style: TextStyle = ()) -> EncodingRequest:
    return EncodingRequest(text, False, style)


class TextEncoder:
    """Encodes a text as its length. ``calls`` are (text, negative, style); "slow" waits for ``gate``, "bad" fails."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, bool, TextStyle]] = []
        self.style: TextStyle = ()
        self.gate = threading.Event()

    def encode(self, text: str, negative: bool = False) -> Condition:
        self.calls.append((text, negative, self.style))
        if text == "slow":
            assert self.gate.wait(20)
        if text == "bad":
            raise RuntimeError("no memory")
        return Condition(torch.full((1, 1, 1), -1.0 if negative else float(len(text))))

    def encode_negative(self, text: str) -> Condition:
        return self.encode(text, negative=True)

    @contextmanager
    def apply_style(self, style: TextStyle) -> Iterator[None]:
        self.style = style
        yield
        self.style = ()

    @property
    def texts(self) -> list[str]:
        return [text for text, _, _ in self.calls]


def test_conditions_are_returned_when_all_texts_are_encoded() -> None:
    texts = TextEncoder()
    encoder = PromptEncoder(texts.encode)
    requests = (positive("ice"), positive("fire"))
    assert encoder.get(requests) is None
    encoder.encode(requests[0])
    assert encoder.get(requests) is None
    encoder.encode(requests[1])
    conditions = encoder.get(requests)
    assert conditions is not None
    assert [float(conditions[request].tokens) for request in requests] == [3.0, 4.0]
    for request in requests:
        encoder.encode(request)
    assert texts.texts == ["ice", "fire"], "each text is encoded once"


def test_negatives_have_an_encoder_where_the_model_has_one() -> None:
    texts = TextEncoder()
    request = EncodingRequest("ice", True, ())
    separate, shared = PromptEncoder(texts.encode, texts.encode_negative), PromptEncoder(texts.encode)
    assert separate.reads_negatives_differently
    assert not shared.reads_negatives_differently
    for encoder, expected in ((separate, -1.0), (shared, 3.0)):
        encoder.encode(request)
        conditions = encoder.get((request,))
        assert conditions is not None
        assert float(conditions[request].tokens) == expected


def test_a_text_is_encoded_once_per_style_and_under_it() -> None:
    texts = TextEncoder()
    encoder = PromptEncoder(texts.encode, apply_style=texts.apply_style)
    for style in ((), ("lora", 0.5), (), ("lora", 0.5)):
        encoder.encode(positive("ice", style))
    assert texts.calls == [("ice", False, ()), ("ice", False, ("lora", 0.5))]
    assert texts.style == ()


def test_only_the_newest_later_requests_are_encoded() -> None:
    texts = TextEncoder()
    encoder = PromptEncoder(texts.encode)
    encoder.encode_later((positive("slow"),))
    until(lambda: texts.texts == ["slow"], 20, "the first text on the thread")
    for text in ("one", "two", "three"):
        encoder.encode_later((positive(text), positive("")))
    texts.gate.set()
    until(lambda: encoder.get((positive("three"), positive(""))), 20, "the newest texts")
    assert texts.texts == ["slow", "three", ""]
    assert encoder.get((positive("slow"),)) is not None, "a superseded text that was being encoded is cached"
    encoder.close()


def test_a_failure_is_counted_and_the_other_texts_are_encoded() -> None:
    encoder = PromptEncoder(TextEncoder().encode)
    requests = (positive("bad"), positive("good"))
    encoder.encode_later(requests)
    until(lambda: encoder.get((positive("good"),)), 20, "the text after the failure")
    assert encoder.failed == 1
    assert encoder.failed_requests == requests
    assert encoder.get(requests) is None
    encoder.close()


def test_the_least_recently_used_text_leaves_a_full_cache() -> None:
    encoder = PromptEncoder(TextEncoder().encode)
    requests = [positive(str(i)) for i in range(MAX_CACHED_TEXTS + 1)]
    for request in requests[:-1]:
        encoder.encode(request)
    assert encoder.get((requests[0],)) is not None, "now used last"
    encoder.encode(requests[-1])
    assert encoder.get((requests[1],)) is None
    assert encoder.get((requests[0], requests[2], requests[-1])) is not None


def test_a_tokenizer_that_raises_anything_ends_neither_the_thread_nor_the_prompts_after_it() -> None:
    texts = TextEncoder()

    def encode(text: str) -> Condition:
        text.encode("utf-8")  # UnicodeEncodeError, as a tokenizer in Rust raises TypeError
        return texts.encode(text)

    encoder = PromptEncoder(encode)
    bad, good = (positive("\ud83d"),), (positive("ice"),)
    encoder.encode_later(bad)
    until(lambda: encoder.failed == 1, 10, "the failure")
    (note,) = encoder.notes
    note.encode()
    encoder.encode_later(good)
    until(lambda: encoder.get(good) is not None, 10, "the next prompt")
    encoder.close()
