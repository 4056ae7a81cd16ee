"""`uae caption-data`: pictures -> a set of long captions, by any image-text-to-text model of transformers."""
