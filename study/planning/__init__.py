"""What a study will cost, before it starts: speeds of a machine, the study simulated on them, the plan."""
