"""Column programs: raw columns to model inputs, the same in training and in serving; sketches and drift."""
