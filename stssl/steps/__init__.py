"""Training steps: modules that own networks and state, and turn a batch into a loss."""
