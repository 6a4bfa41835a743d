"""Captions come from tokens through a converter and a stock GIT."""

import torch

from mindeye2_lite import captions, encoders


def test_the_full_size_converter_has_the_released_shapes():
    with torch.device("meta"):
        state = captions.Converter().state_dict()
    assert {k: tuple(v.shape) for k, v in state.items()} == {
        "linear1.weight": (257, 256),
        "linear1.bias": (257,),
        "linear2.weight": (1024, 1664),
        "linear2.bias": (1024,),
    }


def test_every_caption_is_made_of_known_words_and_none_of_the_marks():
    tokens = torch.randn(3, 16, 128, generator=torch.Generator().manual_seed(0))
    sentences = captions.caption(captions.load("mini-git"), tokens)
    known = encoders.tokenizer().get_vocab()
    assert len(sentences) == 3
    assert all(word in known and word[0] != "[" for s in sentences for word in s.split())


def test_generating_one_by_one_gives_what_generating_together_gives():
    tokens = torch.randn(3, 16, 128, generator=torch.Generator().manual_seed(1))
    captioner = captions.load("mini-git")
    together = captions.caption(captioner, tokens)
    assert together == captions.caption(captioner, tokens, batch=1)
