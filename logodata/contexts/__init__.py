"""Cut documents into chunks, score the chunks for a question, and draw contexts from them."""
