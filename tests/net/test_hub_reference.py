"""Which file a reference means."""

from __future__ import annotations

import pytest

from edgellama.errors import MisuseError
from edgellama.net.hub_reference import HubReference, chosen_path, is_safe_path

FILES = {
    "Model-7B-Q4_K_M.gguf": 4,
    "Model-7B-Q4_K_S.gguf": 3,
    "Model-7B-IQ4_XS.gguf": 2,
    "UD/Model-7B-UD-Q6_K.gguf": 6,
    "mmproj-F16.gguf": 1,
    "Model-7B.F16.GGUF": 15,
    "README.md": 1,
}


@pytest.mark.parametrize(
    ("choice", "path"),
    [
        ("Q4_K_M", "Model-7B-Q4_K_M.gguf"),
        ("q4_k_m", "Model-7B-Q4_K_M.gguf"),
        ("IQ4_XS", "Model-7B-IQ4_XS.gguf"),
        ("UD-Q6_K", "UD/Model-7B-UD-Q6_K.gguf"),
        ("Q6_K", "UD/Model-7B-UD-Q6_K.gguf"),
        ("F16", "Model-7B.F16.GGUF"),
        ("Model-7B-Q4_K_S.gguf", "Model-7B-Q4_K_S.gguf"),
        ("Model-7B-UD-Q6_K.gguf", "UD/Model-7B-UD-Q6_K.gguf"),
        ("UD/Model-7B-UD-Q6_K.gguf", "UD/Model-7B-UD-Q6_K.gguf"),
    ],
)
def test_choice(choice: str, path: str) -> None:
    assert chosen_path(HubReference("a/b", choice), FILES) == path


@pytest.mark.parametrize("choice", ["Q4_K", "4_K_M", "Q8_0", "mmproj-F16.gguf", "README.md", ""])
def test_no_single_file(choice: str) -> None:
    with pytest.raises(MisuseError, match="name one of") as caught:
        chosen_path(HubReference("a/b", choice), FILES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "org/repo",
        "hf:repo",
        "hf:a/b/c",
        "hf:../b",
        "hf:a/..",
        "hf:a/b..c",
        "hf:a/.b",
        "hf:a b/c",
        "hf:",
        "hf:a/b.",
        "hf:a\n/b",
    ],
)
def test_not_a_reference(text: str) -> None:
    with pytest.raises(MisuseError, match="names no model of a hub") as caught:
        HubReference.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["hf:a/b", "hf:a-1/b.c_d:Q4_0", "hf:a/b:c/d.gguf"])
def test_a_reference_reads_back(text: str) -> None:
    assert str(HubReference.parse(text)) == text


@pytest.mark.parametrize(
    "path", ["", "/a", "a//b", "../a", "a/..", "a\\b", "c:x", ".a", "a.", "a/ b", "a\0", "a\n"]
)
def test_unsafe_paths(path: str) -> None:
    assert not is_safe_path(path)


def test_a_long_list_is_cut() -> None:
    files = {f"m-Q{n}_0.gguf": n + 1 for n in range(40)}
    with pytest.raises(MisuseError, match=r"40 models match.* and 16 more$"):
        chosen_path(HubReference("a/b", ""), files)
