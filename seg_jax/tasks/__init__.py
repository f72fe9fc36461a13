"""What is asked of a model, what it should answer and how an answer is judged."""
