"""Files that nobody thought of: 5,000 mutated ones are read, or refused in one line, and soon."""

import pytest
from support.programs import fuzz


@pytest.mark.tensorflow
@pytest.mark.slow
@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_mutated_files_are_read_or_refused(kind):
    outcome = fuzz.run(kind, round(5000 * fuzz.SHARES[kind]), seed=0)
    assert not outcome["failures"]
    assert outcome["slowest_s"] < fuzz.SECONDS
    assert min(outcome["read"], outcome["refused"]) >= 10  # mutations neither do nothing nor everything


@pytest.mark.tensorflow
@pytest.mark.parametrize("kind", ["annotations", "recipes"])
def test_a_few_annotations_and_recipes(kind):
    outcome = fuzz.run(kind, 12, seed=1)
    assert not outcome["failures"] and outcome["read"] + outcome["refused"] == 12
