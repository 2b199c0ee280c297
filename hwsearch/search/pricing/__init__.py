"""What choices cost: a traced network, its latency table and its sensitivities as the solver's problem."""
