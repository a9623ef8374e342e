"""What a conversion cost: perplexity, reports and traces."""
