"""Whether a response is right, beside the references: by rules, and by a model where one is asked."""

from logodata.judge.rules import verdict

__all__ = ["verdict"]
