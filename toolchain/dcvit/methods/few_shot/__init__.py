"""DC-ViT (arXiv 2403.18708), as published and with our solver, and its baseline PRACTISE (arXiv 2202.07861)."""
