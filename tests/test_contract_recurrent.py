"""The contract of the models whose memory crosses segment borders."""

from __future__ import annotations

import pytest
from model_cases import MODELS
from test_contract_models import NAMES as OTHERS
from test_contract_models import check_protocol, check_whole, checks

NAMES = [name for name in MODELS if name not in OTHERS]
every_model = pytest.mark.parametrize("name", NAMES)


@every_model
def test_1_any_split_gives_the_same(name):
    checks(name).any_split()


@every_model
def test_1_whole_segments_are_the_same_function(name):
    check_whole(name)


@every_model
def test_2_causal(name):
    checks(name).causal()


@every_model
def test_3_state_keeps_its_structure(name):
    checks(name).structure()


@every_model
def test_3_protocol(name):
    check_protocol(name)


@every_model
def test_4_rows_are_independent(name):
    checks(name).independent_rows()


@every_model
def test_5_gradients_reach_every_parameter(name):
    checks(name).gradients()


@pytest.mark.parametrize("name", ["transformer_xl", "rmt_cached", "armt"])
def test_7_sharded_equals_unsharded(name):
    checks(name).sharded()
