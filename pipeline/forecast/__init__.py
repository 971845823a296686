"""How long a run over so many rows takes, what it writes and costs, from a short measurement."""
