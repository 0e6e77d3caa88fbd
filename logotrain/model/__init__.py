"""The model that is trained: loaded, with adapters, with a longer window, with layers that compute again."""
