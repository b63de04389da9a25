def brevity(completions, **columns):
    """1 for an answer of up to 30 characters, falling to 0 at 120."""
    lengths = [len(completion[-1]["content"]) for completion in completions]
    return [max(0.0, min(1.0, (120 - length) / 90)) for length in lengths]
