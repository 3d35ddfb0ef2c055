from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.cells import CELLS
from model.config import DecoderConfig, ModelConfig, PreprocessConfig, SearchConfig, from_dict, override
from model.errors import ConfigError

configs = st.builds(
    ModelConfig,
    name=st.text(max_size=5),
    preprocess=st.builds(PreprocessConfig, size=st.integers(1, 999)),
    decoder=st.builds(
        DecoderConfig,
        cell=st.sampled_from(sorted(CELLS)),
        layers=st.sampled_from((1, 2)),
        sentinel=st.booleans(),
        dropout=st.floats(0, 0.9, allow_subnormal=False),
    ),
    search=st.builds(SearchConfig, beam_size=st.integers(1, 10), seed=st.none() | st.integers(0, 2**40)),
)


@given(configs)
def test_a_config_survives_json(config: ModelConfig) -> None:
    assert from_dict(ModelConfig, json.loads(json.dumps(asdict(config)))) == config


def test_overrides_reach_nested_values_and_leave_the_rest() -> None:
    config = override(ModelConfig(name="x"), {"decoder": {"hidden_size": 7}, "preprocess": {"std": [1, 2, 3.5]}})
    assert config.decoder == DecoderConfig(hidden_size=7)
    assert config.preprocess == PreprocessConfig(std=(1, 2, 3.5))
    assert config.name == "x"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"decodr": {}}, "unknown key 'decodr'; known keys: decoder, "),
        ({"decoder": {"hiden_size": 3}}, r"unknown key decoder\.'hiden_size'"),
        ({"decoder": {"cell": "lsmt"}}, r"decoder\.cell must be 'rnn' or 'lstm' or .*, not 'lsmt'"),
        ({"decoder": 3}, "decoder must be DecoderConfig, not 3"),
        ({"decoder": {"hidden_size": "512"}}, r"decoder\.hidden_size must be int, not '512'"),
        ({"decoder": {"hidden_size": 1.5}}, r"decoder\.hidden_size must be int, not 1\.5"),
        ({"decoder": {"layers": 3}}, r"decoder\.layers must be 1 or 2, not 3"),
        ({"decoder": {"layers": True}}, r"decoder\.layers must be 1 or 2, not True"),
        ({"decoder": {"dropout": True}}, r"decoder\.dropout must be float, not True"),
        ({"preprocess": {"mean": [1, 2]}}, r"preprocess\.mean must be"),
        ({"search": {"seed": "one"}}, r"search\.seed must be int \| None, not 'one'"),
    ],
)
def test_unknown_keys_and_wrong_values_are_errors(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        override(ModelConfig(), values)
    with pytest.raises(ConfigError, match=message):
        from_dict(ModelConfig, values)


@pytest.mark.parametrize(
    "wrong",
    [
        {"strategy": "magic"},
        {"beam_size": 0},
        {"beam_size": 11},
        {"num_captions": 0},
        {"num_captions": 6},
        {"max_length": 0},
        {"max_length": 51},
        {"block_ngram": -1},
        {"length_penalty": -0.1},
        {"length_penalty": float("inf")},
        {"temperature": 0.0},
        {"temperature": 1e-41},  # nothing in float32
        {"temperature": float("inf")},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1e-47},
        {"top_p": 1.1},
        {"seed": -1},
    ],
)
def test_a_search_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        SearchConfig(**wrong)


@pytest.mark.parametrize("switch", ["sentinel", "feed_attention"])
def test_what_needs_attention_is_refused_without(switch: str) -> None:
    with pytest.raises(ConfigError, match=f"{switch} needs attention_heads of 1 or more"):
        DecoderConfig(attention_heads=0, **{switch: True})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="attention_heads must be 0 or more"):
        DecoderConfig(attention_heads=-1)
