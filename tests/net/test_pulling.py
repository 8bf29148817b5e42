"""Pulling models from a hub: what comes over the wire, what is kept, and what is refused."""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING

import pytest
from hub_serving import COMMIT, Hub, HubFaults, serving

from edgellama.errors import MisuseError, NetworkError, TransferError, UnsupportedModelError
from edgellama.net.home_lock import try_lock
from edgellama.net.hub_reference import HubReference
from edgellama.net.model_store import ModelStore, PulledModel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Longer than the chunks in which the library hands on what it receives.
LARGE = hashlib.shake_256(b"model").digest(25_000_000)
SMALL = b"GGUF and some more"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)  # the library waits between tries
    with serving(Hub({"org/tiny": {"tiny.Q8_0.gguf": SMALL, "README.md": b"#"}})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


def pulled(store: ModelStore, reference: str) -> PulledModel:
    told: list[str] = []
    return store.pull(HubReference.parse(reference), told.append, lambda _done, _total: None)


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_pulled_file_is_the_hubs_and_has_a_name(hub: Hub, store: ModelStore) -> None:
    model = pulled(store, "hf:org/tiny")
    assert model.path.read_bytes() == SMALL
    assert model.name == "tiny.Q8_0"
    assert model.reference == "hf:org/tiny:tiny.Q8_0.gguf"
    assert model.size_bytes == len(SMALL)
    assert store.models() == [model]


def test_only_the_description_and_the_file_are_asked_for(hub: Hub, store: ModelStore) -> None:
    pulled(store, "hf:org/tiny:Q8_0")
    assert hub.requests == [
        ("GET", "/api/models/org/tiny"),
        ("GET", f"/org/tiny/resolve/{COMMIT}/tiny.Q8_0.gguf"),
        ("GET", "/cdn/org/tiny/tiny.Q8_0.gguf"),
    ]


def test_what_is_here_already_is_not_fetched_again(hub: Hub, store: ModelStore) -> None:
    first = pulled(store, "hf:org/tiny")
    assert pulled(store, "hf:org/tiny") == first
    assert hub.content_bytes_sent == len(SMALL)


def test_a_new_version_replaces_the_old(hub: Hub, store: ModelStore) -> None:
    pulled(store, "hf:org/tiny")
    hub.repositories["org/tiny"]["tiny.Q8_0.gguf"] = SMALL[::-1]
    assert pulled(store, "hf:org/tiny").path.read_bytes() == SMALL[::-1]


def test_an_interrupted_pull_goes_on_where_it_ended(
    hub: Hub, store: ModelStore, tmp_path: Path
) -> None:
    hub.repositories["org/large"] = {"large.gguf": LARGE}
    hub.faults = HubFaults(cut_after_bytes=21_000_000)
    with pytest.raises(NetworkError) as caught:
        pulled(store, "hf:org/large")
    assert "\n" not in str(caught.value)
    assert store.models() == []
    assert store.find("hf:org/large") is None
    (partial,) = (tmp_path / "models").rglob("*.partial")
    have = partial.stat().st_size
    assert 20_000_000 <= have <= 21_000_000
    assert partial.read_bytes() == LARGE[:have]

    hub.faults = HubFaults()
    hub.ranges.clear()
    hub.content_bytes_sent = 0
    assert pulled(store, "hf:org/large").path.read_bytes() == LARGE
    assert hub.ranges == [f"bytes={have}-"]
    assert hub.content_bytes_sent == len(LARGE) - have
    assert files_below(tmp_path / "models") == [".lock", "org/large/large.gguf"]


def test_a_partial_file_that_is_complete_is_only_checked(
    hub: Hub, store: ModelStore, tmp_path: Path
) -> None:
    digest = hashlib.sha256(SMALL).hexdigest()
    folder = tmp_path / "models" / "org" / "tiny"
    folder.mkdir(parents=True)
    (folder / f".tiny.Q8_0.gguf.{digest[:16]}.partial").write_bytes(SMALL)
    assert pulled(store, "hf:org/tiny").path.read_bytes() == SMALL
    assert hub.content_bytes_sent == 0


def test_a_hub_that_heeds_no_range_still_gives_the_whole_file(
    hub: Hub, store: ModelStore, tmp_path: Path
) -> None:
    digest = hashlib.sha256(SMALL).hexdigest()
    folder = tmp_path / "models" / "org" / "tiny"
    folder.mkdir(parents=True)
    (folder / f".tiny.Q8_0.gguf.{digest[:16]}.partial").write_bytes(SMALL[:5])
    hub.faults = HubFaults(ignore_ranges=True)
    try:
        model = pulled(store, "hf:org/tiny")
    except NetworkError:  # older versions of the library append, notice, and begin anew next time
        model = pulled(store, "hf:org/tiny")
    assert model.path.read_bytes() == SMALL


def test_a_false_byte_is_refused_and_removed(hub: Hub, store: ModelStore, tmp_path: Path) -> None:
    hub.faults = HubFaults(falsify=True)
    with pytest.raises(TransferError, match="does not have the hash"):
        pulled(store, "hf:org/tiny")
    assert files_below(tmp_path / "models") == [".lock"]
    hub.faults = HubFaults()
    assert pulled(store, "hf:org/tiny").path.read_bytes() == SMALL


def test_a_false_beginning_is_refused_too(hub: Hub, store: ModelStore, tmp_path: Path) -> None:
    digest = hashlib.sha256(SMALL).hexdigest()
    folder = tmp_path / "models" / "org" / "tiny"
    folder.mkdir(parents=True)
    (folder / f".tiny.Q8_0.gguf.{digest[:16]}.partial").write_bytes(b"junk")
    with pytest.raises(TransferError):
        pulled(store, "hf:org/tiny")
    assert pulled(store, "hf:org/tiny").path.read_bytes() == SMALL


def test_an_altered_copy_is_fetched_again(hub: Hub, store: ModelStore) -> None:
    path = pulled(store, "hf:org/tiny").path
    path.write_bytes(SMALL[::-1])
    assert pulled(store, "hf:org/tiny").path.read_bytes() == SMALL


@pytest.mark.parametrize(
    ("reference", "fault"),
    [
        ("hf:org/none", "has no repository org/none"),
        ("hf:org/gated", "asks for its licence"),
        ("hf:org/tiny:Q4_K_M", r"no model matches; name one of hf:org/tiny:\.\.\. Q8_0 \(18 B\)"),
        ("hf:org/tiny:other.gguf", "no model matches"),
        ("hf:org/empty", "holds no GGUF model"),
        ("hf:org/two", r"2 models match; .* Q4_0 \(3 B\), q8_0 \(4 B\)"),
    ],
)
def test_what_the_hub_does_not_hold(
    hub: Hub, store: ModelStore, reference: str, fault: str
) -> None:
    hub.gated.add("org/gated")
    hub.repositories["org/empty"] = {"model.safetensors": b"x"}
    hub.repositories["org/two"] = {"a-q8_0.gguf": b"1234", "a-Q4_0.gguf": b"123"}
    with pytest.raises(MisuseError, match=fault) as caught:
        pulled(store, reference)
    assert "\n" not in str(caught.value)


def test_a_model_in_parts_is_refused(hub: Hub, store: ModelStore) -> None:
    hub.repositories["org/big"] = {f"big-Q4_0-0000{n}-of-00002.gguf": b"x" for n in (1, 2)}
    with pytest.raises(UnsupportedModelError, match="2 parts"):
        pulled(store, "hf:org/big:Q4_0")


def test_a_file_without_a_published_hash_is_refused(hub: Hub, store: ModelStore) -> None:
    hub.without_hash.add("tiny.Q8_0.gguf")
    with pytest.raises(TransferError, match="no size and SHA-256"):
        pulled(store, "hf:org/tiny")
    assert hub.content_bytes_sent == 0


def test_a_path_that_leaves_its_folder_is_never_offered(hub: Hub, store: ModelStore) -> None:
    hub.repositories["org/evil"] = {"../../evil.gguf": b"x", "/etc/x.gguf": b"x", "a\\b.gguf": b"x"}
    with pytest.raises(MisuseError, match="holds no GGUF model"):
        pulled(store, "hf:org/evil")


def test_a_hub_that_is_not_there(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    with pytest.raises(NetworkError, match="failed") as caught:
        pulled(store, "hf:org/tiny")
    assert "\n" not in str(caught.value)


def test_two_pulls_at_once_are_not(hub: Hub, store: ModelStore, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    with (tmp_path / "models" / ".lock").open("w") as lock:
        assert try_lock(lock.fileno())
        with pytest.raises(MisuseError, match="another edgellama"):
            pulled(store, "hf:org/tiny")


def test_names_and_references_find_the_file(hub: Hub, store: ModelStore) -> None:
    model = pulled(store, "hf:org/tiny")
    for name in ("tiny.Q8_0", "tiny.Q8_0.gguf", "hf:org/tiny", "hf:org/tiny:q8_0", model.reference):
        assert store.find(name) == model, name
    assert store.find("tiny") is None
    assert store.find("hf:org/other") is None
    with pytest.raises(MisuseError):
        store.find("hf:org/tiny:Q4_0")


def test_equal_names_are_told_apart(hub: Hub, store: ModelStore) -> None:
    hub.repositories["other/tiny"] = {"tiny.Q8_0.gguf": SMALL}
    pulled(store, "hf:org/tiny")
    pulled(store, "hf:other/tiny")
    assert [model.name for model in store.models()] == [
        "hf:org/tiny:tiny.Q8_0.gguf",
        "hf:other/tiny:tiny.Q8_0.gguf",
    ]
    with pytest.raises(MisuseError, match="several"):
        store.find("tiny.Q8_0")


def test_removing_leaves_no_folder(hub: Hub, store: ModelStore, tmp_path: Path) -> None:
    model = pulled(store, "hf:org/tiny")
    model.path.with_name(f".{model.path.name}.0123.partial").write_bytes(b"x")
    store.remove(model)
    assert store.models() == []
    assert files_below(tmp_path / "models") == [".lock"]
    assert not (tmp_path / "models" / "org").exists()
