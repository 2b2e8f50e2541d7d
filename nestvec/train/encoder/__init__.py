"""An encoder made the Gecko way (arXiv 2403.20327): generate, mine, relabel, train. Files stand between the steps."""
