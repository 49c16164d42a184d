"""Which prompts are measured, and where they come from: texts, data sets, training data.

PromptSet.from_texts(texts, tokenizer, num_tokens=10, num_prompts=257)
"""
