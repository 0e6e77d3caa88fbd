"""The stages of a build on a Ray cluster: any number of processes plan, and any number of engines answer.

Three parties. This process (``driver``) reads the source, hands out groups of pools a few at a time, and writes down
what became of them. A coordinator, an actor beside it (``coordinator``), runs Ray Data over the numbers of the groups.
Workers (``stages``) fetch a group by its number, plan it (a task on CPUs) and answer it (an actor that holds an
engine), so memory holds what is under way and not the corpus, here and there.

What a node takes with it when it is lost is planned or answered again: a group counts as decided once its outcomes are
with the coordinator, and the coordinator runs Ray Data until all are. Ray starts a lost actor again where there is
room. A task that was in the actor is not tried again with it (Ray Data's default), since it would wait for ever where
there is none, as with the GPUs of a node that is gone.

All nodes need the same environment, the model (and its cache of responses, if any) under the same path, and the
environment variables that the recipe names.
"""

from __future__ import annotations
