"""hubdistill: distil a strong teacher into a LoRA adapter on the Hugging Face Hub. Start at `hubdistill --help`."""

__version__ = "0.1.0"
