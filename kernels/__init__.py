"""Column programs: from raw columns to a model's inputs, the same in training and in serving, with sketches and drift."""
