"""Scopes: what each grants, and that nothing else is granted."""

from __future__ import annotations

import pytest

from router.access.scopes import Action, Scopes, is_scope

EVERYTHING = [Action.READ, Action.WRITE, Action.ADMIN]


@pytest.mark.parametrize(
    ("scope", "collection", "allowed"),
    [
        ("read:films", "films", [Action.READ]),
        ("read:films", "films2", []),  # a name that begins alike is another
        ("read:films2", "films", []),
        ("read:films", "Films", []),
        ("read:films", "", []),
        ("write:films", "films", [Action.WRITE]),  # who may write may not therefore read
        ("admin:films", "films", EVERYTHING),
        ("read:logs-*", "logs-", [Action.READ]),
        ("read:logs-*", "logs-2026", [Action.READ]),
        ("read:logs-*", "log", []),
        ("read:logs-*", "xlogs-1", []),
        ("read:*", "films", [Action.READ]),
        ("admin:logs-*", "logs-1", EVERYTHING),
        ("admin:*", "films", EVERYTHING),
    ],
)
def test_a_scope_grants_what_it_says(scope: str, collection: str, allowed: list[Action]) -> None:
    scopes = Scopes.of([scope])
    assert [action for action in Action if scopes.allow(action, collection)] == allowed


@pytest.mark.parametrize(
    "scope",
    [
        "", "read", "read:", "films", "owner:films", "READ:films", "read:films ", " read:films", "read:a b", "read:**",
        "read:*films", "read:a*b", "read:f\u0131lms", "read:.films", "read:films\n", "read:" + "a" * 200, "read::films",
    ],
)  # fmt: skip
def test_what_is_no_scope_grants_nothing(scope: str) -> None:
    assert not is_scope(scope)
    scopes = Scopes.of([scope])
    assert not any(scopes.allow(action, name) for action in Action for name in ("films", "", "a", scope))


def test_scopes_add_up() -> None:
    scopes = Scopes.of(["read:a", "write:b*", "openid", "read:c"])
    assert [name for name in ("a", "b1", "c") if scopes.allow(Action.READ, name)] == ["a", "c"]
    assert [name for name in ("a", "b1", "c") if scopes.allow(Action.WRITE, name)] == ["b1"]
    assert not any(scopes.allow(Action.ADMIN, name) for name in ("a", "b1", "c"))


def test_the_cluster_is_more_than_all_collections() -> None:
    assert Scopes.of(["admin:*"]).whole_cluster
    assert not Scopes.of(["admin:a*", "read:*", "write:*"]).whole_cluster
