"""From a batch to a trained state: objective, optimizer, step, checkpoints, loop."""
