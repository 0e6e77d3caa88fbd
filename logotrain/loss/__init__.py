"""From the last hidden states to the loss: log-probabilities, the reference model, the objectives."""
