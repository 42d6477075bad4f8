from xds.pool import Policy, Pool, Tier
from xds.trials import Trials

PICK, AFFINITY, WEIGHTS = (Policy(tier=t) for t in (Tier.PICK, Tier.AFFINITY, Tier.WEIGHTS))


def trials(**policies):
    made = Trials()
    wish(made, **policies)
    return made


def wish(made, **policies):
    made.configure(Pool(name, (), policy) for name, policy in policies.items())


def test_the_first_policy_of_a_pool_is_in_effect_at_once():
    made = trials(a=PICK, b=WEIGHTS)
    assert made.in_effect == {"a": PICK, "b": WEIGHTS}
    assert made.candidate is None


def test_a_new_policy_is_tried_before_it_is_in_effect_and_only_one_at_a_time():
    made = trials(a=PICK, b=PICK)
    wish(made, a=AFFINITY, b=WEIGHTS)
    assert made.candidate == "a"
    assert made.tried() == {"a": AFFINITY, "b": PICK}
    assert made.in_effect == {"a": PICK, "b": PICK}
    made.accept()
    assert made.candidate == "b"
    assert made.tried() == {"a": AFFINITY, "b": WEIGHTS}
    made.accept()
    assert made.candidate is None
    assert made.in_effect == {"a": AFFINITY, "b": WEIGHTS}


def test_a_refused_policy_stays_out_until_the_operator_changes_it():
    made = trials(a=PICK, b=PICK)
    wish(made, a=AFFINITY, b=WEIGHTS)
    made.refuse("no such thing")
    assert made.quarantined["a"].reason == "no such thing"
    assert made.candidate == "b", "another pool's trial goes on"
    made.accept()
    wish(made, a=AFFINITY, b=WEIGHTS)
    assert made.candidate is None
    assert made.in_effect == {"a": PICK, "b": WEIGHTS}
    wish(made, a=WEIGHTS, b=WEIGHTS)
    assert made.quarantined == {}
    assert made.candidate == "a"


def test_what_most_refuse_after_all_is_rolled_back_and_stays_out():
    made = trials(a=PICK)
    wish(made, a=AFFINITY)
    made.accept()
    assert made.roll_back("a", "most said no")
    assert made.in_effect == {"a": PICK}
    assert made.candidate is None
    assert not made.roll_back("a", "again"), "there is nothing further back"


def test_a_first_policy_cannot_be_rolled_back():
    assert not trials(a=PICK).roll_back("a", "no")


def test_going_back_to_what_is_in_effect_ends_the_quarantine():
    made = trials(a=PICK)
    wish(made, a=AFFINITY)
    made.refuse("no")
    wish(made, a=PICK)
    assert made.quarantined == {}
    assert made.candidate is None


def test_a_pool_that_is_gone_is_forgotten():
    made = trials(a=PICK)
    wish(made, a=AFFINITY)
    made.refuse("no")
    wish(made)
    assert (made.in_effect, made.quarantined) == ({}, {})
