"""BiomedCLIP, of a BERT and a ViT of transformers."""
