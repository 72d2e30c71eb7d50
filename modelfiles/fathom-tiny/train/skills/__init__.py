"""The skills that fathom-tiny is trained in. Each makes conversations from a random generator and the name of a split."""

from .chat import chat
from .conversation import HELDOUT, TRAIN, Conversation
from .form import form
from .retrieval import Haystack, retrieval
from .thinking import thinking
from .tools import tools

SKILLS = ("chat", "thinking", "tools", "retrieval", "json")

__all__ = ["HELDOUT", "SKILLS", "TRAIN", "Conversation", "Haystack", "make"]


def make(skill: str, rng, split: str, sentences: int = 12) -> Conversation:
    """One conversation. `sentences` is the length of retrieval's filler text and means nothing to the others."""
    match skill:
        case "chat":
            return chat(rng, split)
        case "thinking":
            return thinking(rng, split)
        case "tools":
            return tools(rng, split)
        case "retrieval":
            return retrieval(rng, split, sentences)
        case "json":
            return form(rng, split)
    raise ValueError(f"no skill is called {skill!r}; there are {', '.join(SKILLS)}")
