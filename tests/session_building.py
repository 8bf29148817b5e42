"""Records of sessions for tests.

Any test may `import session_building`: pytest puts the folder of `tests/conftest.py` on the path.
"""

from __future__ import annotations

from dataclasses import replace

from mesh_building import ask_of

from edgellama.wire.messages import Conversation
from edgellama.wire.session_messages import OPEN


def conversation_of(name: str = "trip", **changes: object) -> Conversation:
    """Return a session whose first question is not answered yet."""
    plain = Conversation(
        *(name, "ab" * 16, 1, 1_700_000_000_000, "cd" * 32, "a model", "f16", OPEN, "", ask_of())
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def answered(conversation: Conversation, *tokens: int, state: str = OPEN) -> Conversation:
    """Return the session with these tokens of its answer, whose texts are ``<1>`` and so on."""
    text = "".join(f"<{token}>" for token in tokens)
    ask = replace(conversation.ask, tokens=tokens)
    return replace(conversation, ask=ask, text=text, state=state)
