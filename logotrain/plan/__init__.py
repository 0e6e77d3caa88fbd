"""What a run will need, before it runs: memory, work, time, and the choices that follow from them."""
