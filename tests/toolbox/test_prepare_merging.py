"""Records of one point merge into one: nothing is lost, nothing named twice, and the rule for conflicts holds."""

from helpers_prepare import anomaly
from hypothesis import given
from hypothesis import strategies as st

from llamafactory_ext.gdsh import Anomaly
from llamafactory_ext.toolbox.prepare.samples import merge_anomalies, without_equals


anomalies = st.builds(
    lambda start, length, kind, reason: anomaly(start, start + length, kind, reason=reason),
    st.integers(0, 5),
    st.integers(0, 2),
    st.sampled_from("abc"),
    st.integers(0, 99),
)
points = st.lists(st.lists(anomalies, max_size=6), min_size=1, max_size=5)


@given(points)
def test_every_interval_is_named_once_in_order(records: list[list[Anomaly]]) -> None:
    merged, _, repeated = merge_anomalies(records)
    everything = [(one.start, one.end) for record in records for one in record]
    assert [(one.start, one.end) for one in merged] == sorted(set(everything))
    assert repeated == len(everything) - len(merged)


@given(points)
def test_the_type_that_most_records_give_is_kept_and_ties_go_to_the_first(records: list[list[Anomaly]]) -> None:
    merged, conflicts, _ = merge_anomalies(records)
    told = {conflict.interval: conflict for conflict in conflicts}
    for one in merged:
        interval = (one.start, one.end)
        given_types = [[x.type for x in record if (x.start, x.end) == interval] for record in records]
        in_order = [kind for record in given_types for kind in record]
        votes = {kind: sum(kind in record for record in given_types) for kind in in_order}
        best = [kind for kind in votes if votes[kind] == max(votes.values())]
        assert one.type == min(best, key=in_order.index)
        assert (interval in told) == (len(votes) > 1)
        if interval in told:
            assert told[interval].types == votes
            assert told[interval].kept == one.type
        # The entry is the first of its interval and type, reason and all.
        same = [x for record in records for x in record if (x.start, x.end, x.type) == (*interval, one.type)]
        assert one is same[0]


@given(points)
def test_merging_again_changes_nothing(records: list[list[Anomaly]]) -> None:
    merged, _, _ = merge_anomalies(records)
    assert merge_anomalies([merged]) == (merged, [], 0)


@given(st.lists(anomalies))
def test_of_equals_the_first_stays_in_its_place(found: list[Anomaly]) -> None:
    kept = without_equals(found)
    keys = [(one.start, one.end, one.type) for one in found]
    expected = [one for place, one in enumerate(found) if keys.index(keys[place]) == place]
    assert [id(one) for one in kept] == [id(one) for one in expected]


def test_a_record_that_repeats_itself_has_one_vote() -> None:
    merged, _, _ = merge_anomalies(
        [[anomaly(1, 2, "a"), anomaly(1, 2, "a")], [anomaly(1, 2, "b")], [anomaly(1, 2, "b")]]
    )
    assert [one.type for one in merged] == ["b"]
