"""Who acts for each group of agents: learners, past versions, scripted and perturbed players."""
