"""Pictures of environments: scenes, recordings, and pages that draw or run them."""
