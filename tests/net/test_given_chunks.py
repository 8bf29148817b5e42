"""A chunk of a user's own file leaves the device once, unless it must leave it again."""

from __future__ import annotations

from edgellama.net.given_chunks import NEW_S, GivenChunks


def test_a_chunk_goes_to_one_client() -> None:
    given, first, second = GivenChunks(), object(), object()
    assert given.promise(7, first, 0.0, anyway=False)
    assert given.promise(7, first, 0.0, anyway=False)
    assert not given.promise(7, second, 0.0, anyway=False)
    assert not given.promise(7, second, 0.0, anyway=True)  # it is on its way this moment
    assert given.promise(8, second, 0.0, anyway=False)
    given.gave(7, 0.0)
    assert not given.promise(7, second, 0.0, anyway=False)
    assert not given.promise(7, first, 0.0, anyway=False)
    assert given.promise(7, second, 0.0, anyway=True)
    given.gave(7, 0.0)
    assert not given.promise(7, first, 0.0, anyway=False)


def test_what_a_client_that_is_gone_did_not_get_goes_to_another() -> None:
    given, first, second = GivenChunks(), object(), object()
    for index in (1, 2, 3):
        assert given.promise(index, first, 0.0, anyway=False)
    assert given.promise(4, second, 0.0, anyway=False)
    given.gave(1, 0.0)
    given.forget(first)
    assert [given.promise(index, second, 0.0, anyway=False) for index in (1, 2, 3)] == [
        False,
        True,
        True,
    ]
    assert not given.promise(4, first, 0.0, anyway=False)


def test_what_went_out_a_while_ago_and_is_asked_for_is_lost() -> None:
    given, first, second = GivenChunks(), object(), object()
    assert given.promise(7, first, 0.0, anyway=False)
    given.gave(7, 5.0)
    assert not given.promise(7, second, 5.0 + NEW_S - 0.01, anyway=False)
    assert given.promise(7, second, 5.0 + NEW_S, anyway=False)
    assert not given.promise(7, first, 5.0 + NEW_S, anyway=True)  # it is on its way this moment
