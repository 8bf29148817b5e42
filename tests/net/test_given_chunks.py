"""A chunk of a user's own file leaves the device once, unless it must leave it again."""

from __future__ import annotations

from edgellama.net.given_chunks import GivenChunks


def test_a_chunk_goes_to_one_client() -> None:
    given, first, second = GivenChunks(), object(), object()
    assert given.promise(7, first, anyway=False)
    assert given.promise(7, first, anyway=False)
    assert not given.promise(7, second, anyway=False)
    assert not given.promise(7, second, anyway=True)  # it is on its way this moment
    assert given.promise(8, second, anyway=False)
    given.gave(7)
    assert not given.promise(7, second, anyway=False)
    assert not given.promise(7, first, anyway=False)
    assert given.promise(7, second, anyway=True)
    given.gave(7)
    assert not given.promise(7, first, anyway=False)


def test_what_a_client_that_is_gone_did_not_get_goes_to_another() -> None:
    given, first, second = GivenChunks(), object(), object()
    for index in (1, 2, 3):
        assert given.promise(index, first, anyway=False)
    assert given.promise(4, second, anyway=False)
    given.gave(1)
    given.forget(first)
    assert [given.promise(index, second, anyway=False) for index in (1, 2, 3)] == [
        False,
        True,
        True,
    ]
    assert not given.promise(4, first, anyway=False)
