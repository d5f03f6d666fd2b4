"""Looking into networks: summaries, graphs, features of layers, integrated gradients."""
