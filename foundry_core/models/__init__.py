"""Language models: the base class and the loss, building, the transformers adapter, model folders, and cost."""
