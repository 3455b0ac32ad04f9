"""An exported model, opened safely and applied to photographs of any size."""
