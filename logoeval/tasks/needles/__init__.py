"""Needle in a haystack: numbers are hidden in a long text, the model is asked for them.

Three variants (:mod:`logoeval.tasks.needles.variants`) in any of the haystacks of
:mod:`logoeval.tasks.needles.haystacks`.
"""
