"""The only room that imports Ray: session, flows, reductions, training."""
