"""From image embeddings to words: GIT captions behind a small projector, and concept-name retrieval as the baseline."""
