"""What a model is: tasks, metrics, architectures, and loaded versions (columns and weights as one).

Knows files of a version and tensors; knows nothing of requests, labels' joins or when to retrain.
"""
